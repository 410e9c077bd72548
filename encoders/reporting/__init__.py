"""Results of runs for readers: summaries as text, papers' tables beside ours in four formats, and one HTML page.

`table_formats` writes tables of cells, `summaries` and `table_results` fill them from runs, `plots` draws learning
curves, and `page` puts all of it on one page.
"""

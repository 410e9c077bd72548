"""Results of runs for readers: summaries as text, papers' tables beside ours in four formats, and pages.

`table_formats` writes tables of cells; `summaries`, `measure_tables` and `table_results` fill them from runs. A table
is made of `table_cells`, which a source of `result_sources` or `records` provides, and of `row_pairs`, whose statistics
are in `comparisons` and `seed_variances`. `plots` draws learning curves, `page` puts all runs on one page, and
`results_page` all records.
"""

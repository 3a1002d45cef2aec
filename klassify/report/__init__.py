"""What `klassify compare` computes and shows: systems side by side on one split, and the page
report.html.

entries.py finds systems and their scores, sidebyside.py measures, agreement.py and drift.py look at
what labels alone do not say (klassify.evaluation.leaks at the media), comparison.py holds what was
found; tables.py and text.py write it, plots.py, figures.py, clips.py and page.py make the page.
"""

"""Figures of the product, each beside a goal, a peer or a floor of the same run.

``python -m benchmarks.reaction``: seconds from a fault to the act.
``python -m benchmarks.storm``: a storm of alerts on the remediator while its playbooks run.
``python -m benchmarks.scrape``: what a scrape costs, beside another exporter.
"""

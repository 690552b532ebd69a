"""The Fleet dashboard: every card, what is wrong with it, and the services that use it."""

from __future__ import annotations

from grafana.src.dashboard import Annotation, Dashboard, Variable
from grafana.src.fleet import cards, exporters, links, now, services, wear
from grafana.src.panel import RED

VARIABLES = (
    Variable("job", "Job", "label_values(gpu_up, job)", "The scrape job of the exporters."),
    Variable(
        "instance", "Instance", 'label_values(gpu_up{job=~"$job"}, instance)', "The exporters."
    ),
    Variable(
        "uuid",
        "Card",
        'query_result(max by (card, uuid) (label_join(gpu_info{job=~"$job", instance=~"$instance"},'
        ' "card", " ", "instance", "gpu", "name")))',
        "The cards. Services are shown by the cards that they use.",
        regex='/card="(?<text>[^"]+)".*uuid="(?<value>[^"]+)"/',
    ),
)


DASHBOARD = Dashboard(
    uid="gpu-fleet",
    title="GPU Fleet",
    description="Every card, what is wrong with it, and the LLM services that use it.",
    tags=("gpu", "llm"),
    variables=VARIABLES,
    annotations=(
        Annotation(
            "Alerts",
            'ALERTS{alertstate="firing", alertname=~"GPU.*|LLM.*"}',
            "{{alertname}}",
            "{{instance}} {{uuid}} {{llm_service}}",
            RED,
        ),
    ),
    rows=(
        now.ROW,
        cards.HEAT,
        cards.WORK,
        wear.WEAR,
        links.LINKS,
        services.ROW,
        exporters.HOST,
        exporters.EXPORTERS,
    ),
    links=(("Remediation", "gpu-remediation"),),
)

"""Read single metrics, as Prometheus would."""

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from service.api import gauges
from service.store.database import Database


async def sample(database: Database, name: str, **labels: str) -> float:
    """Return the sum of the samples of that name that have these labels."""

    def matches(sample: Sample) -> bool:
        return sample.name == f"tc_treeherder_{name}" and labels.items() <= sample.labels.items()

    text = (await gauges.exposition(database)).decode()
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if matches(sample))

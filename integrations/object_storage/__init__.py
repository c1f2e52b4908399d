"""Object storage of any S3-compatible kind: where archived audit batches and checkpoints go."""

from integrations.object_storage.client import ObjectStorage
from integrations.object_storage.models import StoredObject

__all__ = ["ObjectStorage", "StoredObject"]

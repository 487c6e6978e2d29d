"""placeholder until merged"""


def shard(layers, group, *, sequence_parallel=False):
    raise ValueError("not there yet")


def shard_dims(layers):
    return {}


def sharded_loss(loss, layers, group):
    return loss

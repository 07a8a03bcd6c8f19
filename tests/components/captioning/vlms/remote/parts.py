"""What the tests of remote captioners share."""

from collections.abc import Callable

from stages.components.captioning.captioner import Failure, Paid
from stages.components.captioning.vlms._remote import RemoteCaptioner
from tests.components.captioning.vlms.loopback import Asked, Fault

Make = Callable[..., RemoteCaptioner]


def failure(reply: Paid) -> Failure:
    assert isinstance(reply.answer, Failure)
    return reply.answer


def always(fault: Fault) -> Callable[[Asked], Fault]:
    return lambda asked: fault

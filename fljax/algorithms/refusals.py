"""What algorithms refuse of a federation, in one line that names the flag."""

from __future__ import annotations

from fljax import plans, policies
from fljax.devices import arrivals, hostile
from fljax.engine import federation
from fljax.engine import seams as kinds
from fljax.updates import codecs


def plain_sgd(fed: federation.Federation, name: str, momentum: bool = False) -> None:
    """Refuses clients that do not train by SGD.

    Args:
      fed: the federation.
      name: of the algorithm.
      momentum: whether momentum is fine.

    Raises:
      ValueError: they train otherwise.
    """
    training = fed.training
    if training.rule != "sgd" or training.optimizer is not None:
        raise ValueError(
            f"--client_optimizer: expected sgd beside {name}, which counts with its "
            f"steps, got {'one of your own' if training.optimizer else training.rule}"
        )
    if training.momentum and not momentum:
        raise ValueError(
            f"--momentum: expected 0 beside {name}, which takes an update for the sum "
            f"of gradients, got {training.momentum}"
        )


def equal_weights(fed: federation.Federation, name: str) -> None:
    """Refuses clients that weigh differently.

    Raises:
      ValueError: they do.
    """
    if fed.rules.weighting != "uniform":
        raise ValueError(
            f"--weighting: expected uniform beside {name}, whose server averages over "
            f"clients, got {fed.rules.weighting}"
        )


def nobody_late(
    fed: federation.Federation,
    name: str,
    since: str = "whose correction is of the round it was sent in",
) -> None:
    """Refuses updates from earlier rounds.

    Args:
      fed: the federation.
      name: of the algorithm.
      since: why, of the algorithm.

    Raises:
      ValueError: there may be some.
    """
    if fed.rules.clock.carries:
        flag = "buffer" if fed.rules.clock.buffer else "late"
        raise ValueError(
            f"--clock.{flag}: expected rounds without late updates beside {name}, "
            f"{since}"
        )


def plain_mean(fed: federation.Federation, name: str) -> None:
    """Refuses aggregates that see single updates.

    Raises:
      ValueError: the aggregate is one.
    """
    if fed.rules.aggregate.sees_updates:
        raise ValueError(
            f"--aggregate: expected mean beside {name}, whose server counts with sums "
            f"over the cohort, got {fed.rules.aggregate}"
        )


def plain_rounds(fed: federation.Federation, name: str) -> None:
    """Refuses rounds that are no plain mean over clients of today's network.

    Args:
      fed: the federation.
      name: of an algorithm whose server keeps a sum over clients.

    Raises:
      ValueError: clients weigh differently, may be late, or are not averaged.
    """
    equal_weights(fed, name)
    nobody_late(fed, name)
    plain_mean(fed, name)


def few_updates(seams: kinds.Seams, most: int) -> None:
    """Refuses aggregates that want more updates than a round can have.

    Args:
      seams: of the algorithm.
      most: updates of a round.

    Raises:
      ValueError: there are fewer.
    """
    if most < seams.aggregate.fewest:
        raise ValueError(
            f"--aggregate: expected mean or what makes sense of {most} updates, the "
            f"most of a round, got {seams.aggregate}, which wants "
            f"{seams.aggregate.fewest}"
        )


def root(fed: federation.Federation, seams: kinds.Seams) -> None:
    """Refuses a server that trains on a root set where it cannot do as clients do.

    Raises:
      ValueError: clients send more than updates, or keep something for the next ones;
        or they have fewer examples than the root set.
    """
    if not seams.aggregate.root_size:
        return
    local = seams.local
    if local is not None and (local.keeps or local.messages or local.numbers):
        raise ValueError(
            f"--aggregate: expected mean or what sees clients alone beside {local}, "
            f"which keeps or sends more than updates, got {seams.aggregate}"
        )
    if seams.personal is not None:
        raise ValueError(
            f"--aggregate: expected mean or what sees clients alone beside "
            f"{seams.personal}, of which the server has nothing, got {seams.aggregate}"
        )
    examples = int(sum(fed.population.shards.counts))
    if seams.aggregate.root_size > examples:
        raise ValueError(
            f"--aggregate: expected a root set of at most {examples:,} examples, which "
            f"the clients have, got {seams.aggregate}"
        )


def single_updates(fed: federation.Federation, seams: kinds.Seams) -> None:
    """Refuses what needs single updates, or another sum than of a round's cohort.

    Args:
      fed: the federation, whose server gets the sum of updates and no summand.
      seams: of the algorithm.

    Raises:
      ValueError: it is asked for.
    """
    rules, codec, some = fed.rules, seams.codec, codecs.Message(1000)
    if rules.aggregate.sees_updates:
        raise ValueError(
            f"--aggregate: expected mean beside --secure_sum, whose server sees no "
            f"single update, got {rules.aggregate}"
        )
    if seams.colludes:
        raise ValueError(
            f"--attack: expected one that knows no updates of others beside "
            f"--secure_sum, of which nobody sees one, got {seams.attack}"
        )
    if rules.norm_bound:
        raise ValueError(
            f"--norm_bound: expected 0 beside --secure_sum, whose server sees no "
            f"single update that it could refuse, got {rules.norm_bound:g}"
        )
    if rules.clock.carries:
        flag = "buffer" if rules.clock.buffer else "late"
        raise ValueError(
            f"--clock.{flag}: expected rounds without late updates beside "
            f"--secure_sum, whose masks are of the round that clients began in"
        )
    wanted, more = rules.clients_per_round, rules.clock.over_selection
    if more > 1 and wanted < arrivals.enough(arrivals.chosen(rules.clock, wanted)):
        raise ValueError(
            f"--clock.over_selection: expected below 2 beside --secure_sum, which more "
            f"than half of those who began must answer, got {more:g}"
        )
    if codec is not None and codec.message(some, some.values) != some:
        raise ValueError(
            f"--codec: expected none or clip beside --secure_sum, which adds up words "
            f"of 32 bits for all values, got {codec}"
        )
    if seams.narrowing is not None:
        raise ValueError(
            "--secure_sum: expected none beside networks of several widths, whose "
            "values are each a mean over others of the cohort"
        )


def body(fed: federation.Federation, head: int, name: str) -> None:
    """Refuses networks that are all head.

    Args:
      fed: the federation.
      head: blocks of the head.
      name: of the algorithm.

    Raises:
      ValueError: there is no block below it.
    """
    blocks = fed.model.net.num_blocks
    if not 1 <= head < blocks:
        raise ValueError(
            f"--network: expected one of more blocks than the {head} of the head "
            f"beside {name}, got {fed.model.net.name!r} of {blocks}"
        )


def sends(fed: federation.Federation, name: str) -> None:
    """Refuses what is of updates, where none is sent.

    Raises:
      ValueError: the federation asks for it.
    """
    rules = fed.rules
    for flag, odd, usual in (
        ("codec", rules.codec, "none"),
        ("aggregate", rules.aggregate.sees_updates and rules.aggregate, "mean"),
        ("norm_bound", rules.norm_bound, "0"),
        ("attack", rules.attack, "none"),
        ("secure_sum", rules.secure_sum, "none"),
        ("privacy.clip", rules.privacy and rules.privacy.clip, "0"),
    ):
        if odd:
            raise ValueError(
                f"--{flag}: expected {usual} beside {name}, which sends nothing, got "
                f"{odd}"
            )


def personal(
    fed: federation.Federation, seams: kinds.Seams, policy: policies.Policy
) -> None:
    """Refuses what makes no sense beside networks that stay with clients in part.

    Args:
      fed: the federation.
      seams: of the algorithm.
      policy: which plan for which client.

    Raises:
      ValueError: it is such a thing.
    """
    if seams.personal is None:
        return
    if policy.always != plans.full(fed.model.net.num_blocks):
        raise ValueError(
            f"personal: expected an algorithm whose clients train the whole network, "
            f"such as fedavg, since blocks are frozen from the server's network, not "
            f"from what stays with each client, beside {seams.personal!r}"
        )
    local = seams.local
    if seams.server.shares or (local and (local.keeps or local.messages)):
        part = seams.server if seams.server.shares else local
        raise ValueError(
            f"personal: expected neither control variates nor states of a local rule "
            f"beside {seams.personal!r}, since these are of the whole network, got "
            f"{part!r}"
        )


def narrow(fed: federation.Federation, seams: kinds.Seams) -> None:
    """Refuses what makes no sense beside networks of several widths.

    Args:
      fed: the federation.
      seams: of the algorithm.

    Raises:
      ValueError: it is one; or there are such networks, and no rule for them.
    """
    widths = sorted({plan.width for plan in fed.model.table.listed} - {1.0})
    if widths and seams.narrowing is None:
        raise ValueError(
            f"narrowing: expected a rule for plans of width {widths[0]:g}, such as "
            f"fljax.nn.narrowing.Narrowing(), got none"
        )
    if seams.narrowing is None:
        return
    if seams.aggregate.sees_updates:
        raise ValueError(
            f"--aggregate: expected mean beside networks of several widths, which have "
            f"no value for each other's channels, got {seams.aggregate}"
        )
    _optimizer_alone(seams, "narrowing", "width")
    if seams.narrowing.masked and not fed.training.task.classes:
        raise ValueError(
            f"masked: expected a task of classes, whose logits it masks, got "
            f"{fed.training.task!r}"
        )


def _optimizer_alone(seams: kinds.Seams, name: str, what: str) -> None:
    """Refuses what clients do beside their optimizer where networks differ in shape.

    Raises:
      ValueError: they do more, or are sent or keep something.
    """
    if seams.local is None and not seams.server.shares and seams.personal is None:
        return
    part = seams.personal or seams.local or seams.server
    raise ValueError(
        f"{name}: expected clients that train by their optimizer alone, since their "
        f"networks differ in {what}, got {part!r}"
    )


def exits(fed: federation.Federation, seams: kinds.Seams) -> None:
    """Refuses what makes no sense beside networks that end at exits.

    Args:
      fed: the federation.
      seams: of the algorithm.

    Raises:
      ValueError: it is such a thing.
    """
    if seams.exits is None:
        return
    if seams.narrowing is not None:
        raise ValueError(
            f"exits: expected networks of one width, got {seams.narrowing!r}"
        )
    _optimizer_alone(seams, "exits", "depth")
    if seams.exits.distill and not fed.training.task.classes:
        raise ValueError(
            f"distill: expected a task of classes, whose logits are distilled, got "
            f"{fed.training.task!r}"
        )
    if fed.model.pretrained is not None:
        raise ValueError(
            "--init: expected none beside a network with exits, whose blocks are "
            "numbered otherwise"
        )


def attacked(fed: federation.Federation) -> None:
    """Refuses attacks that make no sense of the data, or of how updates become one.

    Args:
      fed: the federation.

    Raises:
      ValueError: one line that names the flag.
    """
    attack, net = fed.rules.attack, fed.model.net
    if attack is None:
        return
    try:
        attack.check(net.input_shape, net.num_classes * fed.training.task.classes)
        hostile.draw(attack.share, attack.tier, fed.population.fleet, fed.seed)
    except ValueError as error:
        raise ValueError(f"--attack: {error}") from error
    if attack.colludes and fed.rules.narrowing is not None:
        raise ValueError(
            f"--attack: expected one on a client's own data or update beside networks "
            f"of several widths, which have no value for each other's channels, got "
            f"{attack}"
        )
    if attack.colludes and fed.rules.norm_bound:
        raise ValueError(
            f"--norm_bound: expected 0 beside {attack}, whose updates are made after "
            f"those of others were measured, got {fed.rules.norm_bound:g}"
        )

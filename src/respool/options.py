"""The options of a task, in one table; Celery's names and meanings where Celery has the option."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from . import celery_names
from .celery_names import instead
from .delivery.limits import DEFAULT_BURST, Limit
from .delivery.model import MAX_LEASE
from .delivery.retry import RetryPolicy
from .delivery.storms import BreakerPolicy, BudgetPolicy
from .errors import ConfigError, UnknownName
from .retention import shown_age
from .units import duration, rate, size


def _errors(value: object, what: str) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, tuple | list) else (value,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise ConfigError(f"{what}: {each!r} is no exception class")
    return tuple(classes)


def _count(value: object, what: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ConfigError(f"{what}: {value!r} is not a whole number, 0 or more")


def _at_least_one(value: object, what: str) -> int:
    if _count(value, what) < 1:
        raise ConfigError(f"{what}: must be 1 or more")
    return value  # type: ignore[return-value]


def _batch(value: object, what: str) -> int:
    size = _at_least_one(value, what)
    if size > MAX_LEASE:
        raise ConfigError(f"{what}: {size:,} is more than {MAX_LEASE:,} calls, the most that run together")
    return size


def _field(value: object, what: str) -> Any:
    if callable(value):
        return value
    if isinstance(value, str) and value:
        return value
    raise ConfigError(f"{what}: {value!r} is neither the name of a field nor a function of a call's argument")


class Breaker(NamedTuple):
    """A checked `breaker=`: so many errors of these kinds stop the task for a while."""

    policy: BreakerPolicy
    errors: tuple[type[BaseException], ...] = (Exception,)

    def __str__(self) -> str:
        failures, window, pause = self.policy
        parts = [f"{failures}/{shown_age(window)}"]
        if self.errors != (Exception,):
            parts.append(f"of {', '.join(each.__name__ for each in self.errors)}")
        if pause != BreakerPolicy(1).pause:
            parts.append(f"pause {shown_age(pause)}")
        return ", ".join(parts)


def _breaker(value: Any, what: str) -> Breaker:
    """From "20/1m", or a dict with failures, window, pause and errors."""
    if isinstance(value, str):
        count, slash, window = value.partition("/")
        if not slash or not count.strip().isdigit():
            raise ConfigError(
                f'{what}: {value!r} is not like "20/1m": so many failures, within how long; or give a dict: '
                '{"failures": 20, "window": "1m", "pause": "30s", "errors": (OSError,)}'
            )
        value = {"failures": int(count), "window": window}
    given = _named(value, what, ("failures", "window", "pause", "errors"))
    if "failures" not in given:
        raise ConfigError(f"{what}: failures= is missing: how many stop the task")
    usual = BreakerPolicy(1)
    policy = BreakerPolicy(
        _at_least_one(given["failures"], f"{what}: failures"),
        _positive(given.get("window", usual.window), f"{what}: window"),
        _positive(given.get("pause", usual.pause), f"{what}: pause"),
    )
    return Breaker(policy, _errors(given.get("errors", Exception), f"{what}: errors"))


def _budget(value: Any, what: str) -> BudgetPolicy:
    """From 0.1, or a dict with share, floor and window."""
    given = value if isinstance(value, Mapping) else {"share": value}
    given = _named(given, what, ("share", "floor", "window"))
    share, usual = given.get("share"), BudgetPolicy(1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ConfigError(f"{what}: {share!r} is no share of the runs: more than 0, at most 1")
    return BudgetPolicy(
        float(share),
        _count(given.get("floor", usual.floor), f"{what}: floor"),
        _positive(given.get("window", usual.window), f"{what}: window"),
    )


def _named(value: Any, what: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what}: {value!r} is no dict of {', '.join(known)}")
    for name in value:
        if name not in known:
            raise UnknownName("part", name, known, what)
    return value


def _positive(value: Any, what: str) -> float:
    seconds = duration(value, what)
    if seconds <= 0:
        raise ConfigError(f"{what}: {value!r} must be more than 0")
    return seconds


def flag(value: object, what: str) -> bool:
    """Return what is True or False. Raises ConfigError for all else."""
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{what}: {value!r} is neither True nor False")


def _backoff(value: Any, what: str) -> float:
    """Celery writes retry_backoff=True for one second."""
    if isinstance(value, bool):
        return 1.0 if value else 0.0
    return duration(value, what)


def text(value: object, what: str) -> str:
    """Return a short text that can be printed. Raises ConfigError for all else."""
    if isinstance(value, str) and value and len(value) <= 200 and value.isprintable():
        return value
    raise ConfigError(f"{what}: {value!r} is not printable text of 1 to 200 characters")


def _key(value: object, what: str) -> Any:
    if callable(value) or (isinstance(value, str) and value):
        return value
    raise ConfigError(f"{what}: {value!r} is neither the name of a parameter nor a function of the arguments")


def _unique(value: object, what: str) -> Any:
    if value is False:
        return None
    if value is True or callable(value) or (isinstance(value, str) and value):
        return value
    raise ConfigError(
        f'{what}: {value!r} is none of True (by arguments), "function", a parameter, a function of arguments'
    )


def _one_of(*names: str) -> Callable[[Any, str], str]:
    def check(value: object, what: str) -> str:
        if value in names:
            return str(value)
        raise ConfigError(f"{what}: {value!r} is none of {', '.join(map(repr, names))}")

    return check


def _texts(value: object, what: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, tuple | list):
        raise ConfigError(f"{what}: {value!r} is not a list of names")
    return tuple(text(each, what) for each in value)


def priority(value: object, what: str) -> int:
    """Return a priority, 0 to 9. Raises ConfigError."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 9:
        return value
    raise ConfigError(f"{what}: {value!r} is no whole number from 0 (last) to 9 (first)")


def _maybe(check: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, what: None if value is None else check(value, what)


BATCH_WAIT = 0.1


def _key_option(value: object, what: str) -> Any:
    if callable(value) or (isinstance(value, str) and value.isidentifier()):
        return value
    raise ConfigError(f"{what}: {value!r} is neither the name of a parameter nor a function of the arguments")


def _on_dead(value: object, what: str) -> str:
    if value in ("skip", "block"):
        return str(value)
    raise ConfigError(f'{what}: {value!r} is neither "skip" nor "block"')


class Option(NamedTuple):
    """One option: how it is checked, its default, its meaning."""

    check: Callable[[Any, str], Any]
    default: Any
    meaning: str


OPTIONS: dict[str, Option] = {
    "bind": Option(flag, False, "the function's first argument is the task: self.request, self.retry()"),
    "name": Option(_maybe(text), None, "what calls are recorded under; default: the function's name"),
    "aliases": Option(_texts, (), "former names, still run by this task"),
    "queue": Option(text, "default", "the queue its calls go to"),
    "key": Option(
        _maybe(_key_option),
        None,
        "a parameter's name, or a function of the arguments: calls of one key run one by one, in order; its "
        "queue must be ordered",
    ),
    "on_dead": Option(
        _on_dead, "skip", '"block": a dead letter holds up its key until it is redriven or dropped'
    ),
    "priority": Option(
        _maybe(priority), None, "0 to 9, 9 first; None: 4, the middle. Each one in use is a lane of its own"
    ),
    "autoretry_for": Option(_errors, (), "errors after which a call is retried by itself"),
    "max_retries": Option(_maybe(_count), 3, "retries at most; None: for ever"),
    "default_retry_delay": Option(
        _maybe(duration), None, "exact seconds before a retry, instead of the backoff"
    ),
    "retry_backoff": Option(_backoff, 1.0, "first step of the exponential backoff, in seconds"),
    "retry_backoff_max": Option(duration, 600.0, "the backoff's longest step"),
    "retry_jitter": Option(flag, True, "spread retries at random over the backoff's step"),
    "time_limit": Option(_maybe(_positive), None, "seconds after which the run is killed and has failed"),
    "soft_time_limit": Option(
        _maybe(_positive), None, "seconds after which SoftTimeLimitExceeded is raised in it"
    ),
    "ignore_result": Option(flag, False, "do not store what it returns"),
    "result_ttl": Option(
        _maybe(duration), None, "how long its outcomes are kept; None: as long as the record"
    ),
    "expires": Option(_maybe(_positive), None, "seconds after which an unstarted call is revoked"),
    "throws": Option(_errors, (), "errors that are expected: FAILURE, but no dead letter"),
    "acks_late": Option(flag, True, "False: a call is never run twice, even if its process died"),
    "max_deliveries": Option(
        _maybe(_at_least_one), None, "runs that may end with the death of their process"
    ),
    "dead_letter_ttl": Option(
        _maybe(_positive), None, "how long its dead letters are kept; older ones are dropped; None: for good"
    ),
    "offload_over": Option(
        _maybe(size), None, "bytes beyond which its arguments and results go to the blob store"
    ),
    "retry_budget": Option(
        _maybe(_budget),
        None,
        "share of the task's runs that may be retries: 0.1, and a few more; the rest wait",
    ),
    "breaker": Option(
        _maybe(_breaker), None, 'failures that stop the task for a while: "20/1m", or a dict that says more'
    ),
    "batch": Option(
        _maybe(_batch), None, "run so many calls at once: the function gets a list, and returns one"
    ),
    "batch_wait": Option(
        _maybe(duration), None, "seconds that a call waits for others to fill its batch; default 0.1"
    ),
    "batch_key": Option(
        _maybe(_field), None, "a field of the argument, or a function of it: only equal ones share a batch"
    ),
    "rate_limit": Option(
        _maybe(rate), None, 'starts at most, over all workers: "100/s", "10/m", "5/h", or a number a second'
    ),
    "rate_burst": Option(
        _maybe(_at_least_one), None, "starts at once after a quiet time; default: a fifth of a second's worth"
    ),
    "max_concurrency": Option(_maybe(_at_least_one), None, "runs at a time at most, over all workers"),
    "limit_key": Option(
        _maybe(_key), None, "a parameter, or a function of the arguments: each key has limits of its own"
    ),
    "unique": Option(
        _maybe(_unique),
        None,
        'one call at a time: True: of each arguments; "function": of the task; a parameter, or a function of '
        "the arguments: of each key",
    ),
    "unique_until": Option(
        _maybe(_one_of("started", "done")),
        None,
        'how long others are the same: "done" (default), "started"',
    ),
    "unique_for": Option(_maybe(_positive), None, "instead: seconds from when it was sent, however it ends"),
    "on_duplicate": Option(
        _maybe(_one_of("existing", "raise", "replace")),
        None,
        'what sending a second one gives: "existing": the handle of the first (default); "raise": '
        'DuplicateCall; "replace": the first is not run if it has not begun',
    ),
    "debounce": Option(
        _maybe(_positive),
        None,
        "seconds without another like it before one runs; the last one replaces the others",
    ),
    "serializer": Option(_maybe(text), None, "msgpack (default for tasks), json (for streams) or pickle"),
}


OF_CALLS = (
    *("aliases", "queue", "key", "priority", "expires", "serializer", "debounce"),
    *("unique", "unique_until", "unique_for", "on_duplicate"),
)
"""Options that say how a task's calls are sent: a function that is called with events has none of them."""


def limit_of(values: Mapping[str, Any], what: str) -> Limit | None:
    """Return the limit that options declare, None where they declare none. Raises ConfigError."""
    a_second, burst, slots = values["rate_limit"], values["rate_burst"], values["max_concurrency"]
    if a_second is None and burst is not None:
        raise ConfigError(f"{what}: rate_burst says how far rate_limit may be overrun; give rate_limit= too")
    if a_second is None and slots is None:
        return None
    return Limit(a_second, float(burst or max(1.0, (a_second or 0.0) * DEFAULT_BURST)), slots)


def check_limit(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the options of a limit, checked. Raises ConfigError."""
    names = ("rate_limit", "rate_burst", "max_concurrency")
    return {name: OPTIONS[name].check(values[name], f"{what}: {name}") for name in names}


def _complete_unique(values: dict[str, Any], what: str) -> None:
    """Fill in what the options of unique calls leave open. Raises ConfigError where they do not fit."""
    if values["debounce"] is not None:
        if values["on_duplicate"] not in (None, "replace"):
            raise ConfigError(f"{what}: debounce replaces earlier calls; on_duplicate= cannot be another")
        values["unique"] = True if values["unique"] is None else values["unique"]
        values["on_duplicate"] = "replace"
    chosen = [name for name in ("unique_until", "unique_for", "on_duplicate") if values[name] is not None]
    if values["unique"] is None:
        if chosen:
            raise ConfigError(f"{what}: {chosen[0]} says what is done about equal calls; give unique= too")
        return
    if values["unique_for"] is not None and values["unique_until"] is not None:
        raise ConfigError(f"{what}: unique_for and unique_until: give one of them")
    if values["on_duplicate"] == "replace" and len(chosen) > 1:
        raise ConfigError(
            f'{what}: {chosen[0]} and on_duplicate="replace": what is replaced is what has not begun'
        )
    values["on_duplicate"] = values["on_duplicate"] or "existing"
    values["unique_until"] = values["unique_until"] or "done"


class TaskOptions(msgspec.Struct, frozen=True):
    """A task's options, checked."""

    values: Mapping[str, Any]
    retry: RetryPolicy
    limit: Limit | None = None

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def out_of_order(options: TaskOptions) -> str | None:
    """Return the option for which a task has no place in an ordered queue; None where there is none."""
    if options["batch"] is not None:
        return "batch"
    if options.limit is None:
        return None
    return "rate_limit" if options.limit.rate is not None else "max_concurrency"


def check_defaults(defaults: Mapping[str, Any]) -> None:
    """Check `task_defaults` when the app is made, each by itself: what goes with what, a task says.

    Raises UnknownName for one that does not exist, ConfigError for one that cannot be.
    """
    for name, value in defaults.items():
        _option_of(name, "task_defaults").check(value, f"task_defaults: {name}")


def _option_of(name: str, what: str) -> Option:
    if name not in OPTIONS:
        raise UnknownName(
            "task option", name, OPTIONS, what, instead=instead(celery_names.TASK_OPTIONS, name)
        )
    return OPTIONS[name]


def task_options(
    given: Mapping[str, Any], defaults: Mapping[str, Any], max_deliveries: int, what: str
) -> TaskOptions:
    """Return checked options: those given, else the app's defaults, else the table's.

    Raises UnknownName for one that does not exist, ConfigError for one that cannot be.
    """
    for name in (*given, *defaults):
        _option_of(name, what)
    values = {name: option.default for name, option in OPTIONS.items()}
    for name, value in {**defaults, **given}.items():
        values[name] = OPTIONS[name].check(value, f"{what}: {name}")
    if values["max_deliveries"] is None:
        values["max_deliveries"] = max_deliveries
    if not values["acks_late"]:
        values["max_deliveries"] = 1
    soft, hard = values["soft_time_limit"], values["time_limit"]
    if soft is not None and hard is not None and soft >= hard:
        raise ConfigError(f"{what}: soft_time_limit {soft:g} must be less than time_limit {hard:g}")
    if values["batch"] is None:
        for name in ("batch_wait", "batch_key"):
            if values[name] is not None:
                raise ConfigError(f"{what}: {name} says how batches form; give batch= too")
    elif values["batch_wait"] is None:
        values["batch_wait"] = BATCH_WAIT
    limit = limit_of(values, what)
    if limit is None and values["limit_key"] is not None:
        raise ConfigError(f"{what}: limit_key says whose the limit is; give rate_limit= or max_concurrency=")
    _complete_unique(values, what)
    if values["key"] is not None and values["batch"] is not None:
        raise ConfigError(f"{what}: key and batch exclude each other: calls of one key run one by one")
    if values["key"] is not None and values["priority"] is not None:
        raise ConfigError(f"{what}: key and priority exclude each other: calls of one key keep their order")
    if values["key"] is not None and limit is not None:
        raise ConfigError(f"{what}: key and limits exclude each other: calls of one key run one by one")
    retry = RetryPolicy(
        values["max_retries"],
        values["default_retry_delay"],
        values["retry_backoff"],
        values["retry_backoff_max"],
        values["retry_jitter"],
    )
    return TaskOptions(values, retry, limit)

"""What to use instead of Celery's names that Respool does not have: what an error says of them."""

from __future__ import annotations

from typing import Any, Final

_PAGE: Final = "see docs/celery.md"

TASK_OPTIONS: Final = {
    "retry": "max_retries= says how often; autoretry_for= after which errors",
    "retries": "max_retries= says how often; autoretry_for= after which errors",
    "retry_kwargs": "give max_retries= and default_retry_delay= themselves",
    "base": "there are no base classes; decorate the function below @app.task",
    "typing": "arguments are always checked against the signature",
    "track_started": "STARTED is always told",
    "store_errors_even_if_ignored": "errors are always kept",
    "acks_on_failure_or_timeout": "a failure is settled, and is a dead letter",
    "reject_on_worker_lost": "it is always so; max_deliveries= says how often",
    "result_expires": "result_ttl= says how long",
    "compression": "large payloads go to the blob store: blobs= of App",
    "shared": "there is no current app; import the app that has the task",
    "on_failure": "there are no handlers; app.dead_letters() has what failed",
    "on_success": "there are no handlers; decorate the function below @app.task",
    "on_retry": "there are no handlers; decorate the function below @app.task",
    "routing_key": "queue= says where its calls go",
    "exchange": "queue= says where its calls go",
}
CALL_OPTIONS: Final = {
    "retry": "append_timeout= of App bounds the wait",
    "retry_policy": "append_timeout= of App bounds the wait",
    "link": "the task calls the next one itself",
    "link_error": "what fails is a dead letter: app.dead_letters()",
    "routing_key": "queue= says where it goes",
    "exchange": "queue= says where it goes",
    "compression": "large payloads go to the blob store: blobs= of App",
    "serializer": "it is an option of the task",
    "ignore_result": "it is an option of the task",
    "time_limit": "it is an option of the task",
    "soft_time_limit": "it is an option of the task",
    "max_retries": "it is an option of the task, and of self.retry()",
}
RETRY_OPTIONS: Final = {
    "args": "a call keeps its arguments; send another",
    "kwargs": "a call keeps its arguments; send another",
    "queue": "a call keeps its queue; send another",
    "throw": "retry() always raises",
}
SETTINGS: Final = {
    "broker": "url= says where the log is; there is no broker",
    "broker_url": "url= says where the log is; there is no broker",
    "backend": "results are in the log too: url=",
    "result_backend": "results are in the log too: url=",
    "include": "import the modules that have tasks where the app is started",
    "imports": "import the modules that have tasks where the app is started",
    "result_expires": "result_ttl= says how long",
    "task_serializer": "serializer= of a task: task_defaults={'serializer': 'json'}",
    "task_time_limit": "task_defaults={'time_limit': 300}",
    "task_soft_time_limit": "task_defaults={'soft_time_limit': 300}",
    "task_acks_late": "always so; task_defaults={'acks_late': False} for at most once",
    "task_ignore_result": "task_defaults={'ignore_result': True}",
    "task_default_rate_limit": "task_defaults={'rate_limit': '10/m'}",
    "task_annotations": "task_defaults=, or the option on the task",
    "task_routes": "queue= of the task or the call",
    "task_queues": "app.queue() declares one",
    "task_default_queue": "queue= of the task or the call",
    "task_always_eager": "url='sqlite:///:memory:', and respool.testing.work(app)",
    "worker_concurrency": "an option of the command: respool worker -c 4",
    "worker_prefetch_multiplier": "there is none: leases are sized by how long a task takes",
    "beat_schedule": "there is no beat; let cron call the task with --id",
    "visibility_timeout": "there is none: a lease ends when its worker dies",
    "timezone": "there is none: moments are aware, and kept in UTC",
    "enable_utc": "there is none: moments are aware, and kept in UTC",
    "config_source": "give the settings as arguments of App",
    "autofinalize": "there is none: tasks are registered as they are declared",
    "set_as_current": "there is no current app",
}
_NO_CANVAS: Final = "there is no canvas; a task calls the next one itself, and delay_many() sends a group"
_NO_APP: Final = "there is no current app; import the app that has the task"
_OPTION: Final = "an option of the task: self.options has it"
_NO_BEAT: Final = "there is no beat; let cron call the task with --id"
_LOGGING: Final = (
    "logging is set up where the app's module is imported; else workers log from INFO on, to stderr"
)
MODULE: Final = {
    "Celery": 'from respool import App; app = App("shop")',
    **dict.fromkeys(("chain", "group", "chord", "chunks", "xmap", "xstarmap"), _NO_CANVAS),
    **dict.fromkeys(("signature", "Signature", "subtask", "maybe_signature"), _NO_CANVAS),
    **dict.fromkeys(("shared_task", "current_app", "current_task"), _NO_APP),
}
COMMANDS: Final = {
    "status": "respool workers",
    "inspect": "respool workers, lag, calls, show",
    "events": "respool tail, or respool lag --json",
    "flower": "respool lag --json, workers, calls",
    "report": "respool workers, lag, check",
    "result": "respool show ID",
    "list": "respool queues, tasks, groups list",
    "control": "respool groups pause, respool purge; one worker takes signals",
    "beat": _NO_BEAT,
    "multi": "let systemd, or a container, run respool worker",
    "shell": "start Python, and import the app",
    "amqp": "there is no broker; respool queues, streams",
    "upgrade": "settings are arguments of App(…)",
    "graph": "there are no graphs of workers; respool workers",
    "logtool": _LOGGING,
}
WORKER_FLAGS: Final = {
    **dict.fromkeys(("--loglevel", "-l", "--logfile", "-f"), _LOGGING),
    **dict.fromkeys(
        ("--beat", "-B", "--schedule", "-s", "--scheduler", "-S", "--schedule-filename"), _NO_BEAT
    ),
    "--autoscale": "there is none; -c says how many processes, and more workers may be started at any time",
    "--hostname": "-n names a worker",
    **dict.fromkeys(("--task-events", "-E"), "there are no events; respool lag --json, respool tail"),
    "--optimization": "there is none: leases are sized by how long a task takes",
    "-O": "there is none: leases are sized by how long a task takes",
    "--prefetch-multiplier": "there is none: leases are sized by how long a task takes",
    **dict.fromkeys(("--include", "-I"), "import the modules that have tasks where the app is"),
    **dict.fromkeys(("--exclude-queues", "-X"), "-Q names the queues to serve"),
    "--max-memory-per-child": "--max-tasks-per-child replaces processes by count",
    "--time-limit": "time_limit= of the task, or App(…, task_defaults={'time_limit': 300})",
    "--soft-time-limit": "soft_time_limit= of the task, or App(…, task_defaults={'soft_time_limit': 300})",
    **dict.fromkeys(("--purge", "--discard"), "respool purge --queue Q ends what waits"),
    **dict.fromkeys(
        ("--detach", "-D", "--pidfile", "--uid", "--gid", "--umask"), "let systemd, or a container, run it"
    ),
    **dict.fromkeys(
        ("--statedb", "--broker", "-b", "--result-backend"), "--url says where the log is, and all is there"
    ),
    **dict.fromkeys(
        ("--without-gossip", "--without-mingle", "--without-heartbeat", "--heartbeat-interval"),
        "leave it out: workers do not talk to each other",
    ),
}
APP: Final = {
    "conf": "settings are arguments of App(…)",
    "config_from_object": "settings are arguments of App(…)",
    "control": "respool purge, respool groups pause; workers take signals",
    "autodiscover_tasks": "import the modules that have tasks",
    "add_periodic_task": "there is no beat; let cron call the task with --id",
    "on_after_configure": f"{_NO_BEAT}; what runs once stands at the top of the module",
    "on_after_finalize": "tasks are registered when declared; what runs once stands at the top of the module",
    "on_after_fork": "processes are spawned; what runs once in each stands at the top of the module",
    "GroupResult": "keep the ids of the calls, and ask app.AsyncResult(id); delay_many() has a ResultSet",
    "ResultSet": "delay_many() and apply_many() return one",
    "chain": _NO_CANVAS,
    "group": _NO_CANVAS,
    "chord": _NO_CANVAS,
    "shared_task": _NO_APP,
    "current_task": _NO_APP,
    "events": "there are none; respool lag --json, respool tail",
    "backend": "results are in the log too: app.AsyncResult(id)",
    "start": "run: respool -A … worker",
    "worker_main": "run: respool -A … worker",
    "signature": "there is no canvas; a task calls the next one itself",
}
TASK: Final = {
    "s": "there is no canvas; a task calls the next one itself",
    "si": "there is no canvas; a task calls the next one itself",
    "signature": "there is no canvas; a task calls the next one itself",
    "apply": "call the task itself, add(2, 3), or respool.testing.work(app)",
    "map": "use delay_many()",
    "starmap": "use apply_many()",
    "chunks": "use apply_many()",
    "replace": "return other.delay(…).id",
    "subtask": _NO_CANVAS,
    "run": "call the task itself, add(2, 3)",
    "backend": "results are in the log too: app.AsyncResult(id)",
    "send_event": "there are no events; self.update_state(meta=…) tells of progress",
    "max_retries": f"{_OPTION}; self.request.retries says how many there were",
    **dict.fromkeys(
        (
            *("default_retry_delay", "autoretry_for", "retry_backoff", "rate_limit", "time_limit"),
            *("soft_time_limit", "ignore_result", "acks_late", "serializer", "throws"),
        ),
        _OPTION,
    ),
}
REQUEST: Final = {
    "args": "the function has them as its parameters",
    "kwargs": "the function has them as its parameters",
    "delivery_info": "queue, partition, offset and priority are attributes of their own",
    "correlation_id": "id has it",
    "group": "consumer_group is whose run it is; parent_id, of which call it was sent",
    "chord": "there is no canvas; parent_id and root_id say where a call comes from",
    "chain": "there is no canvas; parent_id and root_id say where a call comes from",
    "callbacks": "there is no canvas; a task calls the next one itself",
    "errbacks": "there is no canvas; what fails is a dead letter",
    "hostname": "socket.gethostname(); respool show ID has the worker",
    "eta": "time says when it was sent; respool show ID has the rest",
    "expires": "an option of the call, or of the task",
    "timelimit": "options of the task: self.options has time_limit, soft_time_limit",
    "is_eager": "a task that is called itself, add(2, 3), has no request",
    "called_directly": "a task that is called itself, add(2, 3), has no request",
    "redelivered": "deliveries says how many runs ended with the death of their process",
    "reply_to": "there is none; the result is in the log",
    "origin": "parent_id and root_id say where a call comes from",
}
GET_OPTIONS: Final = {
    "interval": "leave it out: who waits is woken",
    "no_ack": "leave it out: a result stays on record",
    "follow_parents": "there are no parents; get() of each call",
    "disable_sync_subtasks": "get() in a task is always an error; come back by self.retry()",
    "callback": "get() the results, and go through them",
    "on_message": "AsyncResult.info has the progress",
    "on_interval": "there is none; get(timeout=…) in a loop of your own",
}
RESULT: Final = {
    "wait": "get(timeout=…) waits",
    "collect": "get() of each call; delay_many() returns a ResultSet: iterate()",
    "iterdeps": "there are no children; keep the ids of the calls",
    "date_done": "history() says when each attempt ended",
    "retries": "history() has each attempt",
    "args": "record() has the call as it was sent",
    "kwargs": "record() has the call as it was sent",
    "name": "record().task has it",
    "queue": "respool show ID has it",
    "worker": "history() has each attempt's",
    "then": "a task calls the next one itself",
    "maybe_throw": "get(0) raises what the call raised",
    "throw": "get(0) raises what the call raised",
    "backend": "results are in the log",
    "revoke": "not yet; expires= on the call, or respool purge",
    "forget": "result_ttl= of the task or the app says how long it is kept",
    "children": "not yet; respool show ID has parent and root",
    "parent": "not yet; respool show ID has parent and root",
}


def instead(names: dict[str, str], name: str) -> str:
    """Return what to use instead of one of Celery's names, and where that is told; "" for another name."""
    return f"{names[name]}; {_PAGE}" if name in names else ""


def missing(owner: object, names: dict[str, str], name: str) -> Any:
    """Raise the AttributeError for what an object does not have; for a name of Celery's, with what to use."""
    told = instead(names, name)
    if not told:
        return object.__getattribute__(owner, name)  # also what a property itself raised, as it was
    message = f"{type(owner).__name__!r} object has no attribute {name!r}: {told}"
    raise AttributeError(message, name=name, obj=owner)


def refuse_import(module: str, name: str, *, importing: bool) -> None:
    """Raise what to use instead of one of Celery's names that a module does not have; else do nothing."""
    told = instead(MODULE, name)
    if told and importing:
        raise ImportError(f"cannot import name {name!r} from {module!r}: {told}", name=module)
    if told:
        raise AttributeError(f"module {module!r} has no attribute {name!r}: {told}", name=name)

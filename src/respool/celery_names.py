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
APP: Final = {
    "conf": "settings are arguments of App(…)",
    "config_from_object": "settings are arguments of App(…)",
    "control": "respool purge, respool groups pause; workers take signals",
    "autodiscover_tasks": "import the modules that have tasks",
    "add_periodic_task": "there is no beat; let cron call the task with --id",
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
}
RESULT: Final = {
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

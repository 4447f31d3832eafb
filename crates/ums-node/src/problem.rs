//! Errors of the agent as its callers see them.

use std::error::Error;

use ums_api::problem::{Effect, Fault, Problem, ProblemKind};
use ums_checkpoint::keeper::client;

/// An error and all its causes in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// A failure on this node.
pub fn failed(kind: ProblemKind, title: &str) -> impl Fn(&(dyn Error + 'static)) -> Problem {
    move |error| Problem::failed(kind.clone(), title, chain(error))
}

/// No such service here.
pub fn unknown_service(name: &ums_core::id::ServiceName) -> Problem {
    let detail = format!("there is no service `{name}` on this system; `ums list` shows them");
    Problem::refused(404, ProblemKind::ServiceUnknown, "unknown service", detail)
}

/// No such migration here.
pub fn unknown_migration(id: ums_core::id::MigrationId) -> Problem {
    let detail = format!("this agent knows nothing of migration {id}: it was restarted, or undone");
    Problem::refused(
        404,
        ProblemKind::MigrationUnknown,
        "unknown migration",
        detail,
    )
}

/// A request at a moment at which it can't be granted.
pub fn conflict(kind: ProblemKind, title: &str, detail: impl Into<String>) -> Problem {
    Problem::refused(409, kind, title, detail)
}

/// A task of the agent ended in a panic, or was cut off; the agent goes on.
pub fn panicked(error: &(dyn Error + 'static)) -> Problem {
    let detail = format!(
        "{}: `agent.log` in the state directory says where; nothing else of the agent is touched by it",
        chain(error)
    );
    Problem::failed(ProblemKind::Panic, "the agent failed", detail)
}

/// The service ended by itself.
pub fn exited(name: &ums_core::id::ServiceName, code: i32) -> Problem {
    Problem {
        fault: Fault::Service,
        ..conflict(
            ProblemKind::ServiceExited,
            "the service has exited",
            format!("`{name}` ended by itself with code {code}; see its log, then run it again"),
        )
    }
}

/// A keeper's answer as a problem.
pub fn keeper(error: &client::Error) -> Problem {
    let problem = failed(
        ProblemKind::Keeper,
        "the container's keeper could not do it",
    )(error);
    match error {
        client::Error::Failed { .. } => Problem {
            effect: Effect::None,
            ..problem
        },
        client::Error::Unreachable { .. } => Problem {
            effect: Effect::None,
            retry: false,
            ..problem
        },
        // Nothing was asked of it.
        client::Error::Busy { .. } => Problem {
            effect: Effect::None,
            retry: true,
            ..problem
        },
        _ => problem,
    }
}

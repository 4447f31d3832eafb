//! Exit codes: one table, for the program, its help and its tests.

use std::fmt;

use ums_api::problem::{Fault, Problem};
use ums_core::report::Outcome;

/// What the command's end means to a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It was done; a migration is completed.
    Done = 0,
    /// Something went wrong that none of the others describes.
    Failed = 1,
    /// The command line or the configuration can't be used; nothing was tried.
    Usage = 2,
    /// It was refused, with a reason: by the preflight, by the policy, or because what was named
    /// does not exist or is busy. Nothing was changed.
    Refused = 3,
    /// The migration was abandoned: the service runs at the source.
    Abandoned = 4,
    /// The migration is stuck: a person is needed.
    Stuck = 5,
    /// The Coordinator does not answer.
    Unreachable = 6,
    /// `ums doctor` found that something needed is missing.
    Unfit = 7,
    /// Interrupted: a migration that was being watched goes on.
    Interrupted = 130,
}

impl Exit {
    /// All of them, in order.
    pub(crate) const ALL: [Exit; 9] = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Refused,
        Exit::Abandoned,
        Exit::Stuck,
        Exit::Unreachable,
        Exit::Unfit,
        Exit::Interrupted,
    ];

    /// The number.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    /// What it means, for the help.
    fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done; a migration is completed",
            Exit::Failed => "failed for a reason that none of the others describes",
            Exit::Usage => "bad command line or configuration; nothing was tried",
            Exit::Refused => {
                "refused by the preflight or the policy, or no such thing; nothing was changed"
            }
            Exit::Abandoned => "the migration was abandoned; the service runs at the source",
            Exit::Stuck => "the migration is stuck; a person is needed (`ums status`)",
            Exit::Unreachable => "the Coordinator does not answer",
            Exit::Unfit => "`ums doctor` found that something needed is missing",
            Exit::Interrupted => "interrupted; a migration that was being watched goes on",
        }
    }

    /// The table as the help shows it.
    pub(crate) fn table() -> String {
        let line = |exit: &Exit| format!("  {:>3}  {}\n", exit.code(), exit.meaning());
        format!(
            "Exit codes:\n{}",
            Exit::ALL.iter().map(line).collect::<String>()
        )
    }

    /// The code of a problem document.
    pub(crate) fn of_problem(problem: &Problem) -> Self {
        match problem.fault {
            Fault::Requester => Exit::Refused,
            Fault::Local | Fault::Peer | Fault::Service => Exit::Failed,
        }
    }

    /// The code of a migration that is over. `refused` tells that the preflight stopped it before
    /// anything was touched.
    pub(crate) fn of_outcome(outcome: Outcome, refused: bool) -> Self {
        match outcome {
            Outcome::Completed => Exit::Done,
            // A report of an earlier version calls what was refused abandoned.
            Outcome::Abandoned if refused => Exit::Refused,
            Outcome::Refused => Exit::Refused,
            Outcome::Abandoned => Exit::Abandoned,
            Outcome::Stuck => Exit::Stuck,
            // Nobody watches it any more.
            Outcome::Running => Exit::Interrupted,
        }
    }
}

/// An error and the code it ends with.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The code.
    pub(crate) exit: Exit,
    /// What is said on standard error; nothing when all was said already.
    pub(crate) error: Option<anyhow::Error>,
}

impl Failure {
    /// An error of a kind.
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: Some(error.into()),
        }
    }

    /// The command line or the configuration is at fault.
    pub(crate) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Usage, error)
    }

    /// Ends with a code when all has been said.
    pub(crate) fn said(exit: Exit) -> Self {
        Self { exit, error: None }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Some(error) => write!(out, "{error:#}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use ums_api::problem::ProblemKind;

    #[test]
    fn codes_are_what_is_documented() {
        let codes = Exit::ALL.map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 130]);
        let table = Exit::table();
        for code in codes {
            assert!(
                table.contains(&format!("\n  {code:>3}  ")),
                "{code} is not in {table}"
            );
        }
    }

    #[test]
    fn outcomes_and_problems_have_their_codes() {
        assert_eq!(Exit::of_outcome(Outcome::Completed, false), Exit::Done);
        assert_eq!(Exit::of_outcome(Outcome::Abandoned, false), Exit::Abandoned);
        assert_eq!(Exit::of_outcome(Outcome::Abandoned, true), Exit::Refused);
        assert_eq!(Exit::of_outcome(Outcome::Refused, true), Exit::Refused);
        assert_eq!(Exit::of_outcome(Outcome::Stuck, true), Exit::Stuck);
        let unknown = Problem::refused(
            404,
            ProblemKind::ServiceUnknown,
            "no such service",
            "no `x` here",
        );
        assert_eq!(Exit::of_problem(&unknown), Exit::Refused);
        let broken = Problem::failed(ProblemKind::Journal, "the journal failed", "disk full");
        assert_eq!(Exit::of_problem(&broken), Exit::Failed);
    }
}

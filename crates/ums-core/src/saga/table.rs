//! The step table: who does what in each step, and what undoes it (UMS §III-B).

use crate::step::Step;

/// Who carries a step out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The source Coordinator, with its own Migration Interface.
    Source,
    /// The destination Coordinator, when the source asks it.
    Destination,
    /// The agents, between themselves, inside the step before.
    Agents,
}

/// What undoes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compensation {
    /// Nothing has to be undone, because of this.
    Nothing(&'static str),
    /// What undoes the named step undoes this one too.
    CoveredBy(Step),
    /// The destination is told to discard all it holds. May be put off: the source is free
    /// whether or not the destination can be reached, since an instance that was not committed
    /// never executes.
    ReleaseDestination,
    /// The data path is closed.
    CloseDataPath,
    /// The service is thawed, its endpoint given back, its gate opened.
    ResumeSource,
    /// There is no way back: the step is repeated until it is done.
    ForwardOnly,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The step.
    pub step: Step,
    /// Who carries it out.
    pub actor: Actor,
    /// What is done, idempotent by migration id.
    pub action: &'static str,
    /// What undoes it.
    pub compensation: Compensation,
}

/// The step that can't be undone: it begins with the durable record of the commit.
pub const PIVOT: Step = Step::Commit;

/// All steps in order.
pub const TABLE: [Row; 15] = [
    row(
        Step::DetermineApproach,
        Actor::Source,
        "read facts and Specification, run the preflight, choose approach and technique",
        Compensation::Nothing("it only reads"),
    ),
    row(
        Step::VerifyPeer,
        Actor::Source,
        "hello: identity, version, permission, the destination's facts; preflight with them",
        Compensation::Nothing("it only reads"),
    ),
    row(
        Step::SendSpecification,
        Actor::Destination,
        "reserve: the destination's own preflight, and a reservation with a lease",
        Compensation::ReleaseDestination,
    ),
    row(
        Step::RequestContainer,
        Actor::Destination,
        "create is asked for",
        Compensation::CoveredBy(Step::SendSpecification),
    ),
    row(
        Step::CreateContainer,
        Actor::Destination,
        "its agent creates the container",
        Compensation::CoveredBy(Step::SendSpecification),
    ),
    row(
        Step::ConfirmContainer,
        Actor::Destination,
        "data endpoint, permit and endpoints come back",
        Compensation::CoveredBy(Step::SendSpecification),
    ),
    row(
        Step::OpenDataPath,
        Actor::Source,
        "the agent opens the data path and copies files for the first time",
        Compensation::CloseDataPath,
    ),
    row(
        Step::Checkpoint,
        Actor::Source,
        "block control messages, Frontman takes the endpoint, freeze and checkpoint",
        Compensation::ResumeSource,
    ),
    row(
        Step::Transfer,
        Actor::Agents,
        "images, pages and files are streamed while the checkpoint is taken",
        Compensation::CoveredBy(Step::SendSpecification),
    ),
    row(
        Step::ImageComplete,
        Actor::Agents,
        "both agents agree on the digest of the stream",
        Compensation::CoveredBy(Step::SendSpecification),
    ),
    row(
        Step::RequestRestore,
        Actor::Destination,
        "restore is asked for, with the digest",
        Compensation::CoveredBy(Step::SendSpecification),
    ),
    row(
        Step::Restore,
        Actor::Destination,
        "its agent restores the service and holds it before its first instruction",
        Compensation::CoveredBy(Step::SendSpecification),
    ),
    row(
        Step::Commit,
        Actor::Destination,
        "committed is durable at the source; the destination runs the service",
        Compensation::ForwardOnly,
    ),
    row(
        Step::Announce,
        Actor::Source,
        "the Frontman leads clients to the new place, the endpoint is reported",
        Compensation::ForwardOnly,
    ),
    row(
        Step::DeleteSource,
        Actor::Source,
        "the frozen source container is destroyed, the destination's record closed",
        Compensation::ForwardOnly,
    ),
];

const fn row(step: Step, actor: Actor, action: &'static str, compensation: Compensation) -> Row {
    Row {
        step,
        actor,
        action,
        compensation,
    }
}

impl Compensation {
    /// Whether something has to be done to undo the step itself.
    pub fn acts(self) -> bool {
        matches!(
            self,
            Self::ReleaseDestination | Self::CloseDataPath | Self::ResumeSource
        )
    }

    /// Whether the migration may end before it has succeeded; it is then repeated in the
    /// background until it has.
    pub fn may_be_put_off(self) -> bool {
        matches!(self, Self::ReleaseDestination)
    }
}

/// The row of a step.
pub fn row_of(step: Step) -> &'static Row {
    &TABLE[usize::from(step.number()) - 1]
}

//! The 15 steps of a migration (UMS §III-B, Figure 2), as data.

use serde::{Deserialize, Serialize};

/// A step, by the paper's number. Ordered: a later step compares greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// 1: read the Specification, and judge what the source alone can tell.
    DetermineApproach = 1,
    /// 2: the destination Coordinator answers, is trusted, speaks our version, allows us; approach and technique
    /// are chosen from the facts of both ends.
    VerifyPeer = 2,
    /// 3: the Specification is sent; the destination runs its own preflight and reserves.
    SendSpecification = 3,
    /// 4: the destination Coordinator asks its driver for an identical container.
    RequestContainer = 4,
    /// 5: the driver creates it: name, address, ports, directories, keeper.
    CreateContainer = 5,
    /// 6: the driver confirms.
    ConfirmContainer = 6,
    /// 7: the source learns the data endpoint and the one-time permit; the data path is opened
    /// and files are copied for the first time.
    OpenDataPath = 7,
    /// 8: control messages are blocked, the Frontman takes the endpoint, the service is frozen
    /// and checkpointed.
    Checkpoint = 8,
    /// 9: images, pages and files are streamed, while the checkpoint is being taken.
    Transfer = 9,
    /// 10: the destination has every byte, and has verified it.
    ImageComplete = 10,
    /// 11: the source asks for the restore.
    RequestRestore = 11,
    /// 12: the destination restores the service and holds it before its first instruction.
    Restore = 12,
    /// 13: *committed* is written, durably; then the destination runs the service.
    Commit = 13,
    /// 14: the requester learns the new endpoint; the Frontman leads clients there.
    Announce = 14,
    /// 15: the source container is deleted.
    DeleteSource = 15,
}

impl Step {
    /// All steps in order.
    pub const ALL: [Step; 15] = [
        Step::DetermineApproach,
        Step::VerifyPeer,
        Step::SendSpecification,
        Step::RequestContainer,
        Step::CreateContainer,
        Step::ConfirmContainer,
        Step::OpenDataPath,
        Step::Checkpoint,
        Step::Transfer,
        Step::ImageComplete,
        Step::RequestRestore,
        Step::Restore,
        Step::Commit,
        Step::Announce,
        Step::DeleteSource,
    ];

    /// The paper's number, 1 to 15.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// A short name for people and reports.
    pub fn name(self) -> &'static str {
        match self {
            Step::DetermineApproach => "determine approach",
            Step::VerifyPeer => "verify peer",
            Step::SendSpecification => "send Specification",
            Step::RequestContainer => "request container",
            Step::CreateContainer => "create container",
            Step::ConfirmContainer => "confirm container",
            Step::OpenDataPath => "open data path",
            Step::Checkpoint => "checkpoint",
            Step::Transfer => "transfer",
            Step::ImageComplete => "image complete",
            Step::RequestRestore => "request restore",
            Step::Restore => "restore",
            Step::Commit => "commit",
            Step::Announce => "announce",
            Step::DeleteSource => "delete source",
        }
    }
}

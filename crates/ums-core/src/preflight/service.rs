//! What the service is and holds, and what is wanted of it.

use super::{MigrateOptions, Refusal, RefusalKind};
use crate::facts::{Loss, NodeFacts, Obstacle, ObstacleKind, ServiceFacts};
use crate::plan;
use crate::technique::Technique;

/// The most obstacles that are told one by one; of the rest the number is told.
const OBSTACLES_MAX: usize = 20;

/// It must run, and be nobody else's to move.
pub(super) fn state(service: &ServiceFacts) -> Vec<Refusal> {
    let name = &service.specification.name;
    let mut refusals = Vec::new();
    if let Some(id) = service.migrating {
        refusals.push(Refusal::new(
            RefusalKind::Migrating,
            format!("`{name}` is being migrated already ({id})"),
            "wait until that migration is over, or abort it (`ums abort`)",
        ));
    } else if !service.running {
        refusals.push(Refusal::new(
            RefusalKind::NotRunning,
            format!("`{name}` is not running, so there is nothing to move live"),
            "run it at the destination instead, from the same root filesystem",
        ));
    }
    refusals
}

/// What was asked for must exist here.
pub(super) fn options(options: &MigrateOptions, source: &NodeFacts) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if let Some(reason) = options
        .technique
        .and_then(|technique| plan::technique_unavailable(technique, source, None))
    {
        refusals.push(Refusal::new(
            RefusalKind::TechniqueUnavailable,
            reason,
            "leave `--technique` out: the best that this system has is used then",
        ));
    }
    if let Some(reason) = options
        .approach
        .and_then(|approach| plan::approach_unavailable(approach, source))
    {
        refusals.push(Refusal::new(
            RefusalKind::ApproachUnavailable,
            reason,
            "leave `--approach` out: the one that follows from where the service runs is used then",
        ));
    }
    refusals
}

/// Pages that stay at the source are installed while the service runs: where that can't be, none may stay.
pub(super) fn pages_come_late(technique: Technique, destination: &NodeFacts) -> Option<Refusal> {
    let reason = plan::pages_come_late(technique, destination)?;
    let remedy =
        "leave `--technique` out, or let the destination have userfaultfd (`ums doctor` there)";
    Some(Refusal::new(
        RefusalKind::TechniqueUnavailable,
        reason,
        remedy,
    ))
}

/// What it holds that a checkpoint can't carry.
pub(super) fn obstacles(service: &ServiceFacts) -> Vec<Refusal> {
    let mut refusals: Vec<Refusal> = service
        .obstacles
        .iter()
        .take(OBSTACLES_MAX)
        .map(obstacle)
        .collect();
    let rest = service.obstacles.len().saturating_sub(OBSTACLES_MAX);
    if let (1.., Some(last)) = (rest, refusals.last_mut()) {
        last.cause
            .push_str(&format!(" (and {rest} obstacles more)"));
    }
    refusals
}

/// What the move would change for the worse, where nobody has accepted that: one for each kind.
pub(super) fn losses(losses: &[Loss], options: &MigrateOptions) -> Vec<Refusal> {
    let mut grave: Vec<&Loss> = losses.iter().collect();
    grave.retain(|loss| loss.kind.needs_consent() && !options.accept_loss);
    grave.sort();
    let kinds = grave.chunk_by(|one, other| one.kind == other.kind);
    kinds
        .map(|losses| loss(losses[0], losses.len() - 1))
        .collect()
}

fn loss(Loss { kind, pid, detail }: &Loss, more: usize) -> Refusal {
    let meaning = kind.meaning();
    let more = match more {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Refusal::new(
        RefusalKind::Loss,
        format!("the move would change process {pid}: {meaning}: {detail}{more}"),
        "accept that (`--accept-loss`), or let the service give it up before the migration",
    )
}

/// A table: the kind, what it is, what to do.
fn obstacle(obstacle: &Obstacle) -> Refusal {
    let Obstacle { kind, pid, detail } = obstacle;
    if let Some((what, remedy)) = super::container::words(*kind) {
        let cause = match pid {
            0 => format!("the container {what}: {detail}"),
            pid => format!("process {pid} {what}: {detail}"),
        };
        return Refusal::new(RefusalKind::Container, cause, remedy);
    }
    let (kind, what, remedy) = match kind {
        ObstacleKind::IoUring => (
            RefusalKind::IoUring,
            "uses io_uring, whose requests in flight can't be carried",
            "turn io_uring off in the service's own settings",
        ),
        ObstacleKind::Gpu => (
            RefusalKind::Gpu,
            "uses a GPU, whose memory can't be carried",
            "run it without the GPU, or stop and start it at the destination",
        ),
        ObstacleKind::Device => (
            RefusalKind::Device,
            "uses a device that has state outside the process",
            "let the service close it before the migration",
        ),
        ObstacleKind::Descriptor => (
            RefusalKind::Descriptor,
            "holds a kernel object that CRIU can't carry",
            "let the service close it before the migration",
        ),
        ObstacleKind::ForeignFile => (
            RefusalKind::ForeignFile,
            "has a file open that lies outside its root filesystem and volumes",
            "keep the file in a volume of the service",
        ),
        ObstacleKind::Socket => (
            RefusalKind::Socket,
            "holds a socket of a family that can't be carried",
            "let the service use TCP, UDP or unix sockets, or close it before the migration",
        ),
        ObstacleKind::SharedMemory => (
            RefusalKind::SharedMemory,
            "has shared memory attached that lies outside the container",
            "let the container have an IPC namespace of its own, and its memory made inside",
        ),
        ObstacleKind::MessageQueue => (
            RefusalKind::Descriptor,
            "has a POSIX message queue open, which CRIU can't carry",
            "let the service close it (`mq_close`) before the migration, or use a System V message \
             queue or a socket",
        ),
        ObstacleKind::SecretMemory => (
            RefusalKind::Descriptor,
            "has secret memory (`memfd_secret`), which nobody but the process itself can read",
            "turn secret memory off in the service's own settings",
        ),
        ObstacleKind::PacketPipe => (
            RefusalKind::Descriptor,
            "has a pipe in packet mode (O_DIRECT), which CRIU can't carry",
            "let the service use a plain pipe or a seqpacket socket",
        ),
        ObstacleKind::FileLease => (
            RefusalKind::Descriptor,
            "holds a lease of a file (F_SETLEASE), which can't be taken again at the destination",
            "turn leases off in the service's own settings (Samba: `kernel oplocks = no`)",
        ),
        ObstacleKind::ProcessDirectory => (
            RefusalKind::Descriptor,
            "has a directory of a process below /proc open, which is another one at the destination",
            "let the service close it before the migration",
        ),
        ObstacleKind::DeletedFile => (
            RefusalKind::DeletedFile,
            "has deleted files open that are too large for a checkpoint",
            "let the service close or empty them (a log that was rotated: let it open its log again)",
        ),
        ObstacleKind::MemoryProgram => (
            RefusalKind::Process,
            "runs a program that lies in memory only (memfd), which can't be opened at the \
             destination",
            "run it from a file of the service",
        ),
        ObstacleKind::UnsharedMemory => (
            RefusalKind::Memory,
            "shares memory since its forks that it can't share after a move, and its memory limit has \
             no room for the copies",
            "run it with a higher `--memory`; memory stays shared between a parent that lives and its \
             children, in mappings that have not grown since the fork",
        ),
        ObstacleKind::MainThread => (
            RefusalKind::Process,
            "has ended its first thread while others go on, which CRIU can't carry",
            "let the service's first thread wait for the others instead of ending (`pthread_exit`)",
        ),
        ObstacleKind::Session => (
            RefusalKind::Process,
            "is in a session that CRIU can't make again (setsid)",
            "let it have a session of its own, or end it before the migration",
        ),
        ObstacleKind::PendingTrap => (
            RefusalKind::Process,
            "has a signal pending that CRIU needs itself (SIGTRAP)",
            "let the service take it (it blocks the signal, or reads it by a signalfd), then ask again",
        ),
        ObstacleKind::ThreadTimer => (
            RefusalKind::Process,
            "has a POSIX timer that is bound to a thread in a way that CRIU can't carry",
            "let the service delete it (a profiler uses such timers: stop it), or use timerfd",
        ),
        ObstacleKind::DescriptorLimit => (
            RefusalKind::Process,
            "may open too few files for CRIU to look at it (RLIMIT_NOFILE)",
            "raise its soft limit (`prlimit --pid PID --nofile=1024:`), or let it close some",
        ),
        ObstacleKind::MemoryLimit => (
            RefusalKind::Process,
            "may map too little memory for CRIU to look at it (RLIMIT_AS, RLIMIT_DATA)",
            "raise its soft limit (`prlimit --pid PID --as=BYTES: --data=BYTES:`), or limit the service by `--memory` \
             instead",
        ),
        ObstacleKind::SharedAddressSpace => (
            RefusalKind::Process,
            "shares its memory with another process (CLONE_VM, or a `vfork` that is under way), \
             which CRIU can't carry",
            "wait until a `vfork` is over and ask again, or let the service use threads or `fork`",
        ),
        ObstacleKind::SharedPlaces => (
            RefusalKind::Process,
            "shares its working directory and umask with another process (CLONE_FS), which CRIU \
             can't carry",
            "let the service start it with `fork`, or end it before the migration",
        ),
        ObstacleKind::ThreadApart => (
            RefusalKind::Process,
            "has a thread with a working directory, umask or descriptors of its own (`unshare`), \
             which CRIU can't carry",
            "let the service use a process for it, or end the thread before the migration",
        ),
        ObstacleKind::UnreadMessages => (
            RefusalKind::Socket,
            "holds a socket whose messages CRIU can't take out",
            "let the service read them and ask again, or close the socket before the migration",
        ),
        ObstacleKind::HeldData => (
            RefusalKind::Socket,
            "holds a socket whose data CRIU can't take out",
            "let the service send what it holds back and ask again",
        ),
        ObstacleKind::SocketState => (
            RefusalKind::Socket,
            "holds a socket in a state that CRIU can't make again",
            "let the service close it, or do without that, and ask again",
        ),
        ObstacleKind::UrgentData => (
            RefusalKind::Socket,
            "has not read the urgent byte (MSG_OOB) of a connection, which CRIU can't carry",
            "let the service read it and ask again",
        ),
        ObstacleKind::WaitingConnection => (
            RefusalKind::Socket,
            "listens at a unix socket with a connection that CRIU can't make again",
            "ask again once it has accepted the connection; a server that is busy for long needs more \
             workers, or less load",
        ),
        ObstacleKind::InFlight => (
            RefusalKind::Descriptor,
            "has a descriptor on its way between two processes (SCM_RIGHTS) that CRIU can't carry there",
            "ask again once the other process has received it",
        ),
        ObstacleKind::Terminal => (
            RefusalKind::Descriptor,
            "has a terminal open in a way that CRIU can't make again",
            "let it close the terminal (end the program that runs in it) before the migration",
        ),
        ObstacleKind::OtherUser => (
            RefusalKind::OtherUser,
            "runs as a user whose processes' limits CRIU may not read without CAP_SYS_RESOURCE",
            "start `ums-agent` with that capability (a container engine gives it with `--cap-add \
             SYS_RESOURCE`), or let the service run as root inside its container",
        ),
        ObstacleKind::HugePages => (
            RefusalKind::Process,
            "has memory in huge pages of the kernel's pool (hugetlbfs), which the destination has to \
             have reserved",
            "turn huge pages off in the service's own settings (PostgreSQL: `huge_pages = off`; a JVM: \
             `-XX:-UseLargePages`); transparent huge pages move",
        ),
        ObstacleKind::SealedMapping => (
            RefusalKind::Descriptor,
            "has a memory file mapped shared that is sealed against writing (F_SEAL_WRITE), which CRIU \
             can't seal again",
            "let the service map it private (MAP_PRIVATE), or end the mapping before the migration",
        ),
        ObstacleKind::ProgramDescriptor => (
            RefusalKind::Descriptor,
            "has its own program open without access to it (O_PATH), from which CRIU can't map the \
             program again",
            "let the service close it before the migration, or open it for reading",
        ),
        ObstacleKind::RootDirectory => (
            RefusalKind::Process,
            "has another root directory than the container (`chroot`), and CRIU looks at the mounts from \
             the first process's",
            "let a child of the first process enter it, or use the directory as the service's root \
             filesystem (`ums run --rootfs`)",
        ),
        ObstacleKind::WatchedFile => (
            RefusalKind::Descriptor,
            "watches files (inotify) that have no path any more, or symbolic links themselves, which CRIU can't find",
            "let the service end those watches before the migration",
        ),
        ObstacleKind::Fanotify => (
            RefusalKind::Descriptor,
            "watches files by fanotify in a way that CRIU can't take up again",
            "let the service use inotify, or close it before the migration",
        ),
        // Of its container, above.
        _ => (RefusalKind::Container, "can't move", "see its engine"),
    };
    Refusal::new(kind, format!("process {pid} {what}: {detail}"), remedy)
}

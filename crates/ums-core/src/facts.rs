//! What is known about a system, a node and a service, gathered by the Migration Interface and
//! judged by pure functions.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::specification::{ImageId, Specification};

mod loss;

pub use loss::{Loss, LossKind};

/// What a node is and has, at one moment. Part of the peer API's *hello*, from which versions are
/// told: what a later version adds is passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Machine architecture as `uname -m` says it.
    pub architecture: String,
    /// CPU features by the names of Linux: those in `/proc/cpuinfo`, and on x86 those that the CPU has and
    /// that kernel has no name for.
    pub cpu_features: BTreeSet<String>,
    /// Kernel release as `uname -r` says it.
    pub kernel: String,
    /// Version of CRIU as major, minor, sublevel; `None` when there is none that works.
    pub criu: Option<(u32, u32, u32)>,
    /// Why all pages of a service are put in place before it runs here; `None` where userfaultfd
    /// installs them while it runs, which is faster and needs less memory.
    pub eager_restore: Option<String>,
    /// Paths below /proc on which containers have mounts, of those that this kernel has.
    pub proc_paths: BTreeSet<String>,
    /// Memory that can be had without swapping, bytes.
    pub memory_available_bytes: u64,
    /// Free space where services are kept, bytes.
    pub disk_available_bytes: u64,
    /// What its system has.
    #[serde(flatten)]
    pub system: SystemFacts,
    /// Images present.
    pub images: BTreeSet<ImageId>,
    /// What it can't confine a service by, and how many processes it can restore.
    #[serde(default)]
    pub limits: NodeLimits,
    /// What stands in the way of clients there and is not ours to change, for people.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Whether it can tell which pages of a running service change.
    #[serde(default)]
    pub tracks_memory: bool,
    /// Whether it is the inside of an outer container, whose engine knows that and nothing in it.
    #[serde(default)]
    pub outer: bool,
    /// Container engines there.
    #[serde(default)]
    pub engines: Vec<EngineFacts>,
}

/// A container engine of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// Its name on that node.
    pub name: String,
    /// Why no service can arrive in a container of it; `None` when one can.
    #[serde(default)]
    pub unready: Option<String>,
}

/// What a system has as a whole, whichever of its nodes is asked: names, addresses and ports, each of
/// which exists once in it. On the wire these stand among the node's, as in version 1 of the peer API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemFacts {
    /// Names of services here, of reservations too.
    pub services: BTreeSet<String>,
    /// Addresses in use on the service network.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// The service network, as address and prefix length.
    pub service_network: (Ipv4Addr, u8),
    /// TCP ports that services or others hold on this system. (An earlier release counts the UDP ports
    /// of its services here.)
    pub ports: BTreeSet<u16>,
    /// UDP ports that services or others hold on this system.
    #[serde(default)]
    pub udp_ports: BTreeSet<u16>,
    /// Whether a service whose address is taken here gets another one for its place on the network, and
    /// keeps its own inside.
    #[serde(default)]
    pub readdresses: bool,
    /// How much of a service its release carries: [`CARRIES`] of it, 0 where it does not say.
    #[serde(default)]
    pub carries: u32,
}

/// How much of a service this release carries beyond what CRIU does. It is raised when something is added
/// that a destination of an earlier release would pass over: 1 are memberships in multicast groups and
/// the attributes of processes; 2 is what a process alone can be told (protection keys, sealed memory,
/// SEM_UNDO, the deadlines of timers), and the flags of watches.
pub const CARRIES: u32 = 2;

/// What of a service's confinement a node can keep.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeLimits {
    /// Why a service's devices can't be filtered here; `None` when they can.
    #[serde(default)]
    pub no_device_filter: Option<String>,
    /// Why no memory limit can be set here; `None` when one can.
    #[serde(default)]
    pub no_memory_limit: Option<String>,
    /// Processes whose pages can be installed while they run: one descriptor each. `None` where that
    /// was not asked.
    #[serde(default)]
    pub processes_max: Option<u64>,
}

/// What a running service is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceFacts {
    /// Its Specification.
    pub specification: Specification,
    /// Whether it runs now.
    pub running: bool,
    /// Number of processes.
    pub processes: u32,
    /// Number of threads.
    pub threads: u32,
    /// Resident memory, bytes.
    pub memory_bytes: u64,
    /// Bytes in its changed files and volumes.
    pub filesystem_bytes: u64,
    /// Bytes in its image, to be sent where the destination lacks it.
    pub image_bytes: u64,
    /// Established TCP connections.
    pub connections: u32,
    /// What it holds that can't be carried.
    pub obstacles: Vec<Obstacle>,
    /// What the move would change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<Loss>,
    /// The migration that holds its gate shut, if one does.
    pub migrating: Option<crate::id::MigrationId>,
}

impl ServiceFacts {
    /// Bytes of image that have to go to this destination: none where it has it.
    pub fn image_bytes_for(&self, destination: &NodeFacts) -> u64 {
        match destination.images.contains(&self.specification.image) {
            true => 0,
            false => self.image_bytes,
        }
    }
}

/// Something in a service that a checkpoint can't carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Obstacle {
    /// What it is.
    pub kind: ObstacleKind,
    /// Process id inside the service's PID namespace.
    pub pid: i32,
    /// What was seen: a path or the kernel's name for the thing.
    pub detail: String,
}

/// Kinds of obstacle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObstacleKind {
    /// An io_uring instance.
    IoUring,
    /// A GPU or its driver's device file.
    Gpu,
    /// Another device file that has state outside the process.
    Device,
    /// A kernel object behind a descriptor that CRIU does not know.
    Descriptor,
    /// A file outside the container's root filesystem and volumes.
    ForeignFile,
    /// A socket family that can't be carried.
    Socket,
    /// System V shared memory or another object attached from outside.
    SharedMemory,
    /// A POSIX message queue (`mq_overview(7)`).
    MessageQueue,
    /// Memory that the kernel can't read (`memfd_secret(2)`).
    SecretMemory,
    /// A pipe in packet mode (O_DIRECT).
    PacketPipe,
    /// A lease of a file (F_SETLEASE).
    FileLease,
    /// A directory of a process below /proc.
    ProcessDirectory,
    /// A deleted file that is open, and too large for the images.
    DeletedFile,
    /// A program that was run from a file in memory.
    MemoryProgram,
    /// A process whose first thread has ended while others go on.
    MainThread,
    /// A process whose session can't be made again.
    Session,
    /// A SIGTRAP that was not taken yet.
    PendingTrap,
    /// A POSIX timer that signals a thread which has ended, or counts the CPU time of one thread.
    ThreadTimer,
    /// A limit of open files that leaves no room for CRIU.
    DescriptorLimit,
    /// A limit of memory (RLIMIT_AS, RLIMIT_DATA) that leaves no room for CRIU.
    MemoryLimit,
    /// Two processes in one address space (CLONE_VM, vfork).
    SharedAddressSpace,
    /// Two processes with one working directory, root and umask (CLONE_FS).
    SharedPlaces,
    /// A thread with places or descriptors of its own (unshare).
    ThreadApart,
    /// A netlink socket with messages that were not read.
    UnreadMessages,
    /// A UDP socket that holds data back.
    HeldData,
    /// A socket with something of the kernel's that CRIU can't make again.
    SocketState,
    /// A TCP connection with an urgent byte that was not read.
    UrgentData,
    /// A connection to a unix socket that nobody has accepted, and that CRIU can't make again.
    WaitingConnection,
    /// A descriptor on its way between two processes (SCM_RIGHTS) that CRIU can't carry there.
    InFlight,
    /// A terminal in a state that CRIU can't make again.
    Terminal,
    /// A user whose processes' limits CRIU may not read.
    OtherUser,
    /// Memory shared by fork that will not be shared after a move, and that the service's own limit has no
    /// room for.
    UnsharedMemory,
    /// Memory in pages of the kernel's pool of huge ones (hugetlbfs, MAP_HUGETLB).
    HugePages,
    /// A mapping of a memfd that is sealed against writing.
    SealedMapping,
    /// A descriptor without access (O_PATH) of the program that runs.
    ProgramDescriptor,
    /// The first process has another root directory (`chroot(2)`).
    RootDirectory,
    /// A file that is watched by inotify and has no name any more.
    WatchedFile,
    /// Marks of fanotify that CRIU can't make again.
    Fanotify,
    /// The container's engine holds it still.
    Paused,
    /// The container runs under another runtime than runc.
    Runtime,
    /// The container has a namespace together with its host or with another container.
    SharedNamespace,
    /// The container may do more with its host than containers may.
    Privileged,
    /// A process that the engine has started in the container (`docker exec`).
    ExecSession,
    /// The container's root filesystem can't be told from its image.
    Layers,
    /// A mount of the container that can't be made at another place.
    ContainerMount,
    /// A label of the container's (AppArmor, SELinux).
    SecurityLabel,
}

#[cfg(test)]
mod test {
    use super::*;

    /// What a node of the first release tells, with less in its sets.
    const FIRST: &str = r#"{"architecture":"x86_64","cpu_features":["fpu"],"kernel":"6.1.0","criu":[4,2,1],
        "eager_restore":null,"proc_paths":[],"memory_available_bytes":1,"disk_available_bytes":2,"services":["web"],
        "addresses":["10.88.0.2"],"service_network":["10.88.0.0",16],"ports":[80],"udp_ports":[53],"readdresses":true,
        "images":[],"limits":{"no_device_filter":null,"no_memory_limit":null,"processes_max":7}}"#;

    #[test]
    fn facts_of_the_system_stand_among_the_nodes_as_in_the_first_release() {
        let facts: NodeFacts = serde_json::from_str(FIRST).expect("facts");
        assert_eq!(facts.system.services, ["web".to_owned()].into());
        assert_eq!(facts.system.service_network, ([10, 88, 0, 0].into(), 16));
        assert_eq!(facts.system.ports, [80].into());
        assert_eq!((facts.system.readdresses, facts.system.carries), (true, 0));
        assert_eq!(facts.limits.processes_max, Some(7));
        // And that release reads what is told to it.
        let first: serde_json::Value = serde_json::from_str(FIRST).expect("JSON");
        let told = serde_json::to_value(&facts).expect("JSON");
        for (name, value) in first.as_object().expect("an object") {
            assert_eq!(told.get(name), Some(value), "{name}");
        }
    }
}

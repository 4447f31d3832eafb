//! The part of CRIU's RPC that we use, as protobuf messages (CRIU `images/rpc.proto`; field
//! numbers are that file's).

/// `criu_req_type`: the requests that we make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum RequestType {
    /// No request.
    Empty = 0,
    /// Checkpoint a process tree.
    Dump = 1,
    /// Restore one.
    Restore = 2,
    /// Answer to a notification.
    Notify = 6,
    /// Ask for CRIU's version.
    Version = 10,
}

/// `criu_cg_mode`: we place restored tasks in their cgroup ourselves.
pub const CGROUPS_IGNORE: i32 = 0;
/// `criu_network_lock_method`: packets are held by rules of our own, which outlive CRIU.
pub const NETWORK_LOCK_SKIP: i32 = 3;

/// `criu_page_server_info`: only the descriptor of a connected socket.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PageServerInfo {
    /// Descriptor in the process that CRIU was started by.
    #[prost(int32, optional, tag = "4")]
    pub fd: Option<i32>,
}

/// `inherit_fd`: a descriptor of ours for a resource named `key` in the image.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InheritFd {
    /// CRIU's name of the resource, for example `pipe:[1234]`.
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// Our descriptor.
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// `ext_mount_map`: what is mounted for a name in the image.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExtMount {
    /// The name.
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// A path here.
    #[prost(string, required, tag = "2")]
    pub val: String,
}

/// `criu_opts`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Opts {
    /// Directory of the images.
    #[prost(int32, required, tag = "1")]
    pub images_dir_fd: i32,
    /// Root task of the tree to dump.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    /// Detach from the tasks after the dump instead of killing them.
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    /// Allow unix sockets with a peer outside.
    #[prost(bool, optional, tag = "4")]
    pub ext_unix_sk: Option<bool>,
    /// Carry established TCP connections.
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    /// Open a device by another path when its own is gone.
    #[prost(bool, optional, tag = "6")]
    pub evasive_devices: Option<bool>,
    /// Carry file locks.
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    /// 0 (silent) to 4 (debug).
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    /// File name in the work directory.
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    /// Where pages go.
    #[prost(message, optional, tag = "11")]
    pub ps: Option<PageServerInfo>,
    /// Send notifications and wait for their answers.
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    /// Root filesystem of the restored tasks; a mount point.
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    /// Directory for the log and the lazy-pages socket.
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    /// Give a name to an open file that has lost its own and has another.
    #[prost(bool, optional, tag = "18")]
    pub link_remap: Option<bool>,
    /// Mounts for names in the image; how runc says [`external`](Self::external).
    #[prost(message, repeated, tag = "23")]
    pub ext_mnt: Vec<ExtMount>,
    /// Restore the root task as our child, not CRIU's.
    #[prost(bool, optional, tag = "26")]
    pub rst_sibling: Option<bool>,
    /// Descriptors that stand for resources of the image.
    #[prost(message, repeated, tag = "27")]
    pub inherit_fd: Vec<InheritFd>,
    /// What to do with cgroups.
    #[prost(int32, optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    /// Largest deleted but open file to put into the image, bytes.
    #[prost(uint32, optional, tag = "35")]
    pub ghost_limit: Option<u32>,
    /// Where files are looked for that are watched, and whose handles can't be opened.
    #[prost(string, repeated, tag = "36")]
    pub irmap_scan_paths: Vec<String>,
    /// Resources that are not CRIU's to carry.
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    /// Freezer cgroup of the tree.
    #[prost(string, optional, tag = "44")]
    pub freeze_cgroup: Option<String>,
    /// Seconds after which freezing is given up.
    #[prost(uint32, optional, tag = "45")]
    pub timeout: Option<u32>,
    /// Leave out connections that wait to be accepted, instead of failing.
    #[prost(bool, optional, tag = "46")]
    pub tcp_skip_in_flight: Option<bool>,
    /// Leave pages out that a userfaultfd server will install.
    #[prost(bool, optional, tag = "48")]
    pub lazy_pages: Option<bool>,
    /// File with options that a request has no field for; they come last.
    #[prost(string, optional, tag = "51")]
    pub config_file: Option<String>,
    /// Restore established connections as closed ones.
    #[prost(bool, optional, tag = "52")]
    pub tcp_close: Option<bool>,
    /// How packets are held during the dump.
    #[prost(int32, optional, tag = "64")]
    pub network_lock: Option<i32>,
}

/// `criu_req`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// What is asked.
    #[prost(enumeration = "RequestType", required, tag = "1")]
    pub kind: i32,
    /// How.
    #[prost(message, optional, tag = "2")]
    pub opts: Option<Opts>,
    /// Answer to a notification: false vetoes.
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Notify {
    /// Name of the moment, for example `post-restore`.
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    /// Root task, where it is known.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// `criu_restore_resp`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RestoreResponse {
    /// Root task.
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

/// `criu_version`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Version {
    /// Major.
    #[prost(int32, required, tag = "1")]
    pub major: i32,
    /// Minor.
    #[prost(int32, required, tag = "2")]
    pub minor: i32,
    /// Sublevel.
    #[prost(int32, optional, tag = "4")]
    pub sublevel: Option<i32>,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// What this answers.
    #[prost(enumeration = "RequestType", required, tag = "1")]
    pub kind: i32,
    /// Whether it went well.
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    /// Of a restore.
    #[prost(message, optional, tag = "4")]
    pub restore: Option<RestoreResponse>,
    /// A notification.
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notify>,
    /// An errno, where CRIU has one.
    #[prost(int32, optional, tag = "7")]
    pub cr_errno: Option<i32>,
    /// A message, where CRIU has one.
    #[prost(string, optional, tag = "9")]
    pub cr_errmsg: Option<String>,
    /// Of a version request.
    #[prost(message, optional, tag = "10")]
    pub version: Option<Version>,
}

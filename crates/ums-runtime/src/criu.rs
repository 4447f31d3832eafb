//! This program in CRIU's place: `criu swrk FD`, started by `runc restore`.
//!
//! runc has put it into the container's control groups before it asks for anything, and given it the container's
//! standard streams: CRIU gets both from here. This program leaves the groups, and answers runc.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, mount_change, move_mount};
use ums_checkpoint::criu::rpc::{Opts, RequestType};
use ums_checkpoint::keeper::client::Keeper;
use ums_checkpoint::keeper::placing::{FromKeeper, FromRuntime, IMAGES_PATIENCE};
use ums_checkpoint::keeper::protocol::{PlaceRequest, Request};
use ums_checkpoint::offers::Offers;
use ums_checkpoint::{cgroup, keyring, message};

use crate::wire::Runtime;
use crate::{netns, rootfs};

/// runc's name of a network namespace that it has been given.
const GIVEN_NETNS: &str = "extRootNetNS";
/// Where the tmpfs for `/dev/shm` is mounted for CRIU, in the directory of the offer.
const SHM: &str = "shm";
/// Why it came to nothing, in the directory of the offer.
const WHY: &str = "why";
/// A keeper says something else than is its turn.
const OUT_OF_TURN: &str = "the keeper spoke out of turn: is it of another release?";
/// How often is looked whether runc is still there.
const LOOK: Duration = Duration::from_secs(5);

/// Serves the one request of a container runtime.
pub(crate) fn serve(fd: i32, place: &Path) -> ExitCode {
    match serve_socket(fd, place) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Not to standard error: that is the container's.
            let _ = fs::write(place.join(WHY), why);
            ExitCode::FAILURE
        }
    }
}

fn serve_socket(fd: i32, place: &Path) -> Result<(), String> {
    let socket = message::inherited(fd).map_err(|error| format!("no socket {fd}: {error}"))?;
    let runtime = Runtime::new(socket);
    let said = |error: io::Error| format!("runc can't be talked to: {error}");
    let Some(request) = runtime.request().map_err(said)? else {
        return Ok(());
    };
    match (RequestType::try_from(request.kind), request.opts) {
        (Ok(RequestType::Version), _) => runtime.version().map_err(said),
        (Ok(RequestType::Restore), Some(opts)) => {
            let restored = restore(&runtime, &opts, place);
            restored.inspect_err(|why| drop(runtime.failed(request.kind, why)))
        }
        _ => {
            let why = "only a restore is served here";
            runtime.failed(request.kind, why).map_err(said)
        }
    }
}

fn restore(runtime: &Runtime, opts: &Opts, place: &Path) -> Result<(), String> {
    let offer = Offers::taken(place).map_err(|error| format!("no offer: {error}"))?;
    let keeper = Keeper::connect(&offer.keeper).map_err(|error| error.to_string())?;
    let keeper = keeper.into_socket();
    let given = opts.inherit_fd.iter().find(|it| it.key == GIVEN_NETNS);
    let given = given.map(|it| message::inherited(it.fd)).transpose();
    let given = given.map_err(|error| format!("the network namespace: {error}"))?;
    let mut criu = start(&keeper, opts, given.as_ref(), place)?;
    let held = complete(runtime, &keeper, &criu, given.is_none(), place);
    if let Err(why) = &held {
        let reason = why.clone();
        let _ = message::send(keeper.as_fd(), &FromRuntime::Failed { reason }, &[]);
        let _ = criu.child.kill();
        let _ = criu.child.wait();
        if runtime.has_gone() {
            rootfs::unmount(Path::new(&criu.root), &criu.outside);
        }
    }
    held
}

/// A CRIU that waits, and what it was started with.
struct Criu {
    child: Child,
    bin: std::path::PathBuf,
    netns: OwnedFd,
    inherited: Vec<i32>,
    /// The root filesystem.
    root: String,
    /// runc's mount namespace.
    outside: fs::File,
}

/// Starts CRIU as the keeper wants it.
fn start(
    keeper: &OwnedFd,
    opts: &Opts,
    given: Option<&OwnedFd>,
    place: &Path,
) -> Result<Criu, String> {
    let mounts = opts
        .ext_mnt
        .iter()
        .map(|it| (it.key.clone(), it.val.clone()));
    let request = Request::Place(PlaceRequest {
        root: opts.root.clone().unwrap_or_default(),
        mounts: mounts.collect(),
        shm: place.join(SHM),
    });
    let fds: Vec<_> = given.iter().map(|fd| fd.as_fd()).collect();
    let gone = |error: io::Error| format!("the keeper has gone: {error}");
    message::send(keeper.as_fd(), &request, &fds).map_err(gone)?;
    let answer = message::receive(keeper.as_fd()).map_err(gone)?;
    let (program, fds) = match answer {
        Some((FromKeeper::Criu { program }, fds)) => (program, fds),
        Some((FromKeeper::Failed { reason }, _)) => return Err(reason),
        _ => return Err("the keeper has gone".to_owned()),
    };
    let [socket, netns, shm] = <[OwnedFd; 3]>::try_from(fds)
        .map_err(|_| "the keeper has handed over something else than a CRIU needs")?;
    let outside = mount(shm, &place.join(SHM))
        .map_err(|error| format!("/dev/shm can't be mounted: {error}"))?;
    for fd in [&socket, &netns] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| error.to_string())?;
    }
    if let Err(error) = keyring::leave() {
        // A kernel without keys has none to keep from the service.
        let _ = error;
    }
    let bin = program.parent().unwrap_or(Path::new("/")).to_owned();
    let child = Command::new(&program)
        .args(["swrk", &socket.as_raw_fd().to_string()])
        .env_clear()
        .env("PATH", &bin)
        .current_dir("/")
        .spawn();
    let child = child.map_err(|error| {
        format!(
            "`{}` can't be started: {error}: is the C/R bundle installed (`ums doctor`)?",
            program.display()
        )
    })?;
    Ok(Criu {
        child,
        bin,
        inherited: vec![netns.as_raw_fd(), 1, 2],
        root: opts.root.clone().unwrap_or_default(),
        outside,
        netns,
    })
}

/// Mounts the tmpfs for `/dev/shm` in a mount namespace of this process and of CRIU, which goes with them. What CRIU
/// mounts while it works does so, too, whatever ends it.
/// Gives the one that it was in.
fn mount(shm: OwnedFd, at: &Path) -> io::Result<fs::File> {
    fs::create_dir(at)?;
    let outside = fs::File::open("/proc/self/ns/mnt")?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is unmounted outside is unmounted here, and nothing of ours is seen outside.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    move_mount(shm, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(outside)
}

/// Has the runtime do what it does when the container's namespaces are there, waits for the processes, and has it
/// write them down. `fresh`: nobody has made anything in the network namespace.
fn complete(
    runtime: &Runtime,
    keeper: &OwnedFd,
    criu: &Criu,
    fresh: bool,
    place: &Path,
) -> Result<(), String> {
    let own = std::process::id();
    let asking = getsockopt(runtime.socket(), sockopt::PeerCredentials);
    let asking = asking.map_err(|error| error.to_string())?.pid();
    cgroup::follow(own, asking.unsigned_abs())
        .map_err(|error| format!("the container's control groups can't be left: {error}"))?;
    setns(&criu.netns, CloneFlags::CLONE_NEWNET)
        .map_err(|error| format!("its network: {error}"))?;
    netns::set(place)?;
    if fresh {
        netns::loopback(&criu.bin)?;
    }
    // An engine's hooks take a tenth of a second, in which nothing is frozen yet. They look at the namespace of this process.
    runtime.notify("setup-namespaces", own as i32)?;
    let started = FromRuntime::Started {
        pid: criu.child.id() as i32,
        inherited: criu.inherited.clone(),
    };
    let gone = |error: io::Error| format!("the keeper has gone: {error}");
    message::send(keeper.as_fd(), &started, &[]).map_err(gone)?;
    match hear(runtime, keeper)? {
        FromKeeper::Complete => rootfs::forget(Path::new(&criu.root))?,
        _ => return Err(OUT_OF_TURN.to_owned()),
    }
    message::send(keeper.as_fd(), &FromRuntime::Ready, &[]).map_err(gone)?;
    let FromKeeper::Restored { pid } = hear(runtime, keeper)? else {
        return Err(OUT_OF_TURN.to_owned());
    };
    runtime.notify("post-restore", pid)?;
    Offers::restored(place).map_err(|error| format!("it can't be written down: {error}"))?;
    message::send(keeper.as_fd(), &FromRuntime::Taken, &[]).map_err(gone)?;
    runtime
        .restored(pid)
        .map_err(|error| format!("runc has gone: {error}"))
}

/// What the keeper says next, unless that is that it comes to nothing.
fn hear(runtime: &Runtime, keeper: &OwnedFd) -> Result<FromKeeper, String> {
    wait(runtime, keeper)?;
    match message::receive(keeper.as_fd()) {
        Ok(Some((FromKeeper::Failed { reason }, _))) => Err(reason),
        Ok(Some((word, _))) => Ok(word),
        Ok(None) => Err("the keeper has gone".to_owned()),
        Err(error) => Err(format!("the keeper has gone: {error}")),
    }
}

/// Waits until the keeper has something to say, as long as runc waits too.
fn wait(runtime: &Runtime, keeper: &OwnedFd) -> Result<(), String> {
    let end = Instant::now() + IMAGES_PATIENCE;
    while Instant::now() < end {
        let sockets = [keeper.as_fd(), runtime.socket().as_fd()];
        let mut fds = sockets.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let look = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, look) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.to_string()),
        }
        if fds[0].any() == Some(true) {
            return Ok(());
        }
        if fds[1].any() == Some(true) {
            return Err("runc was ended: its engine does not wait for the service any more".into());
        }
    }
    let minutes = IMAGES_PATIENCE.as_secs() / 60;
    Err(format!("the service has not come within {minutes} minutes"))
}

//! `ums-runtime` under plain runc commands: a service that a keeper has checkpointed arrives in a container that runc
//! makes, is held there, and is runc's own afterwards.

mod support;

use std::process::{Child, Output, Stdio};

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use ums_checkpoint::offers::{Offer, Offers};

use support::departed::{departed, departed_as, program};
use support::*;

const ID: &str = "arrived-1";

/// A container that runc is to make, and the keeper that awaits its service.
struct Arrival {
    place: Place,
    keeper: Keeper,
    offers: Offers,
    bundle: PathBuf,
}

impl Arrival {
    fn new(bundle: &Path, root: &Path) -> Self {
        // Who makes a container is left its processes, and collects them: an engine's shim.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let mut place = Place::new(bundle, root, "arrival");
        place.config.placed = true;
        let keeper = place.start();
        let offers = Offers::new(place.dir.path().join("offers"));
        let this = Self {
            keeper,
            offers,
            bundle: bundle.to_owned(),
            place,
        };
        this.write_bundle(root);
        this
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.dir.path().join(name)
    }

    fn cgroup(&self) -> String {
        format!("{}-of-runc", self.place.config.cgroup)
    }

    fn cgroup_dir(&self) -> PathBuf {
        let group = ums_checkpoint::cgroup::Cgroup::at(&self.cgroup()).unwrap();
        group.freezer_dir().unwrap()
    }

    /// As an engine writes it: with a network namespace to be made, and a parameter of it.
    fn write_bundle(&self, root: &Path) {
        let places = ums_standalone::bundle::Places {
            rootfs: root,
            netns: Path::new(""),
            volumes: self.place.dir.path(),
            shm: &self.at("shm"),
            cgroup: &self.cgroup(),
        };
        let script = "echo started anew; exec sleep 1000";
        let config = ums_standalone::bundle::config(&specification(script), &places, (1024, 4096));
        let mut config = config.unwrap();
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            namespace.as_object_mut().unwrap().remove("path");
        }
        config["linux"]["sysctl"] = serde_json::json!({ "net.ipv4.ip_default_ttl": "77" });
        std::fs::write(self.at("bundle/config.json"), config.to_string()).unwrap();
    }

    fn offer(&self) {
        let keeper = self.place.config.socket.clone();
        self.offers.offer(ID, &Offer { keeper }).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program().unwrap());
        command
            .arg("--ums-dir")
            .arg(self.at("offers"))
            .arg("--ums-runc")
            .arg(self.bundle.join("bin/runc"))
            .arg("--root")
            .arg(self.at("state"))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    fn runtime(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command prints, which must succeed.
    fn succeeds(&self, args: &[&str]) -> String {
        let output = self.runtime(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.succeeds(&["state", ID])).unwrap()
    }

    /// Asks for the container; what it writes is in the log.
    fn create(&self) -> Child {
        let (mut from, to) = std::io::pipe().unwrap();
        let mut log = std::fs::File::create(&self.place.config.log).unwrap();
        std::thread::spawn(move || std::io::copy(&mut from, &mut log));
        let (bundle, pid_file) = (self.at("bundle"), self.at("pid"));
        let [bundle, pid_file] = [&bundle, &pid_file].map(|path| path.to_str().unwrap());
        let args = ["create", "--bundle", bundle, "--pid-file", pid_file, ID];
        let mut command = self.command(&args);
        command.stdout(to.try_clone().unwrap()).stderr(to);
        command.spawn().unwrap()
    }

    /// The same until the keeper has the container.
    fn placed(&self) -> Child {
        self.offer();
        let mut create = self.create();
        wait_until("runc has made the container", || {
            if let Some(status) = create.try_wait().unwrap() {
                let why = std::fs::read_to_string(self.at("offers").join(ID).join("why"));
                panic!("{status}: {why:?} {}", self.place.log());
            }
            self.keeper.status().unwrap().placed
        });
        create
    }

    fn init(&self) -> i32 {
        let pid = std::fs::read_to_string(self.at("pid")).unwrap();
        pid.trim().parse().unwrap()
    }

    /// Collects the init, as a shim does; true once it has ended.
    fn ended(&self) -> bool {
        let pid = Pid::from_raw(self.init());
        let status = waitpid(pid, Some(WaitPidFlag::WNOHANG)).expect("it is left to us");
        status != nix::sys::wait::WaitStatus::StillAlive
    }

    /// What runc has of it is removed, and nothing is left.
    fn delete(&self) {
        self.succeeds(&["delete", ID]);
        wait_until("the cgroup is gone", || !self.cgroup_dir().exists());
    }
}

#[test]
fn a_service_arrives_in_a_container_of_runc_and_is_its_own() {
    let Some(from) = departed("a_service_arrives_in_a_container_of_runc_and_is_its_own") else {
        return;
    };
    let frozen_at = last_tick(&from.place.log());
    let to = Arrival::new(&from.bundle, from.root.path());
    let mut create = to.placed();
    let held = restore(&to.keeper, &from.images, &from.stored);
    assert_eq!(held.phase, Phase::Held);
    assert!(
        create.wait().unwrap().success(),
        "create ends while it is held"
    );
    assert_eq!(to.state()["status"], "running");
    assert_eq!(to.state()["pid"], to.init());
    to.succeeds(&["start", ID]);
    assert_eq!(to.place.log(), "", "a held container has not executed");

    to.keeper.call(&Request::Resume, &[]).unwrap();
    wait_until("it counts on", || {
        last_tick(&to.place.log()) > frozen_at + 5
    });
    let log = to.place.log();
    assert_eq!(
        log.lines().next().unwrap(),
        format!("tick {}", frozen_at + 1)
    );
    wait_until("every page is in", || {
        to.keeper.status().unwrap().pages_missing == 0
    });
    // It is runc's own now: the keeper is needed no more.
    to.keeper.call(&Request::Leave, &[]).unwrap();
    to.offers.withdraw(ID).unwrap();
    let inside = to.succeeds(&[
        "exec",
        ID,
        "/bin/busybox",
        "cat",
        "/proc/sys/net/ipv4/ip_default_ttl",
    ]);
    assert_eq!(inside, "77\n");
    let link = to.succeeds(&["exec", ID, "/bin/busybox", "ip", "link", "show", "lo"]);
    assert!(link.contains("UP"), "{link}");
    to.succeeds(&["pause", ID]);
    assert_eq!(to.state()["status"], "paused");
    to.succeeds(&["resume", ID]);
    to.succeeds(&["kill", ID, "KILL"]);
    wait_until("it is dead", || to.ended());
    assert_eq!(to.state()["status"], "stopped");
    to.delete();
    from.over();
}

#[test]
fn a_service_that_was_given_up_while_held_leaves_nothing_and_is_not_started_anew() {
    let name = "a_service_that_was_given_up_while_held_leaves_nothing_and_is_not_started_anew";
    let Some(from) = departed(name) else {
        return;
    };
    let to = Arrival::new(&from.bundle, from.root.path());
    let mut create = to.placed();
    restore(&to.keeper, &from.images, &from.stored);
    assert!(create.wait().unwrap().success());
    to.keeper.call(&Request::Quit, &[]).unwrap();
    wait_until("it is dead", || to.ended());
    assert_eq!(to.state()["status"], "stopped");
    assert_eq!(to.place.log(), "", "it has never executed");
    to.delete();

    // What its engine does by a restart policy.
    assert!(!to.create().wait().unwrap().success());
    wait_until("its engine is told why", || {
        to.place.log().contains("arrives by a migration")
    });
    assert!(!to.cgroup_dir().exists());
    // Once the migration is over it is a container as any other.
    to.offers.withdraw(ID).unwrap();
    let created = to.create().wait().unwrap();
    assert!(created.success(), "{}", to.place.log());
    to.succeeds(&["start", ID]);
    wait_until("it runs", || to.place.log().contains("started anew"));
    to.succeeds(&["kill", ID, "KILL"]);
    wait_until("it is dead", || to.ended());
    to.delete();
    from.over();
}

#[test]
fn a_service_that_does_not_come_fails_the_creation_and_leaves_nothing() {
    let Some(from) = departed("a_service_that_does_not_come_fails_the_creation_and_leaves_nothing")
    else {
        return;
    };
    let to = Arrival::new(&from.bundle, from.root.path());
    let mut create = to.placed();
    to.keeper.call(&Request::Quit, &[]).unwrap();
    assert!(!create.wait().unwrap().success());
    let why = std::fs::read_to_string(to.at("offers").join(ID).join("why")).unwrap();
    assert!(why.contains("abandoned"), "{why}");
    wait_until("the cgroup is gone", || !to.cgroup_dir().exists());
    assert!(!to.runtime(&["state", ID]).status.success());
    from.over();
}

#[test]
fn a_held_container_that_its_engine_kills_fails_the_restore() {
    let Some(from) = departed("a_held_container_that_its_engine_kills_fails_the_restore") else {
        return;
    };
    let to = Arrival::new(&from.bundle, from.root.path());
    let mut create = to.placed();
    restore(&to.keeper, &from.images, &from.stored);
    assert!(create.wait().unwrap().success());
    to.succeeds(&["kill", ID, "KILL"]);
    wait_until("it is dead", || to.ended());
    wait_until("the keeper knows", || {
        to.keeper.status().unwrap().phase != Phase::Held
    });
    let resumed = to
        .keeper
        .call(&Request::Resume, &[])
        .unwrap_err()
        .to_string();
    assert!(resumed.contains("can't be resumed"), "{resumed}");
    to.keeper.call(&Request::Quit, &[]).unwrap();
    to.delete();
    from.over();
}

#[test]
fn an_arrival_fails_when_the_runtime_that_waits_is_killed() {
    let Some(from) = departed("an_arrival_fails_when_the_runtime_that_waits_is_killed") else {
        return;
    };
    let to = Arrival::new(&from.bundle, from.root.path());
    let mut create = to.placed();
    // As its engine does that does not want to wait.
    create.kill().unwrap();
    create.wait().unwrap();
    wait_until("CRIU is gone", || {
        let members = std::fs::read_to_string(to.cgroup_dir().join("cgroup.procs"));
        members.unwrap_or_default().is_empty()
    });
    let request = Request::Restore(RestoreRequest {
        lazy_bytes: from.stored.lazy_bytes,
        lazy: true,
        connections: Connections::Close,
    });
    let fds = [from.images.as_fd(), from.stored.lazy.as_fd()];
    let refused = to.keeper.call(&request, &fds).unwrap_err().to_string();
    assert!(
        // It says so itself, where it is asked before it has ended.
        ["the container runtime has gone", "runc was ended"]
            .iter()
            .any(|why| refused.contains(why)),
        "{refused}"
    );
    to.keeper.call(&Request::Quit, &[]).unwrap();
    // Its engine has it removed, and must find nothing of the root filesystem where that removes everything.
    wait_until("nothing is mounted", || !is_mounted_below(&to.at("state")));
    to.succeeds(&["delete", "--force", ID]);
    assert!(from.root.path().join("bin/busybox").exists());
    ums_checkpoint::cgroup::Cgroup::at(&to.cgroup())
        .unwrap()
        .remove()
        .unwrap();
    from.over();
}

#[test]
fn a_keeper_that_is_lost_fails_the_creation_and_leaves_nothing() {
    let Some(from) = departed("a_keeper_that_is_lost_fails_the_creation_and_leaves_nothing") else {
        return;
    };
    let to = Arrival::new(&from.bundle, from.root.path());
    let mut create = to.placed();
    kill(to.keeper.status().unwrap().keeper_pid);
    assert!(!create.wait().unwrap().success());
    wait_until("the cgroup is gone", || !to.cgroup_dir().exists());
    assert!(!to.runtime(&["state", ID]).status.success());
    from.over();
}

/// Where the service was, and where its client is beside it; where it arrives, and where that is then.
const OLD: (&str, &str) = ("10.9.0.2", "10.9.0.1");
const NEW: (&str, &str) = ("10.8.0.2", "10.8.0.1");

/// A network namespace with a name, which goes with this.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("ums-{name}-{}", std::process::id());
        docker::ip(&["netns", "add", &name]);
        Self(name)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// A connection from here.
    fn connect(&self, to: &str) -> std::net::TcpStream {
        let (netns, to) = (std::fs::File::open(self.path()).unwrap(), to.to_owned());
        let connect = move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut connected = None;
            wait_until("the service listens", || {
                connected = std::net::TcpStream::connect(&to).ok();
                connected.is_some()
            });
            connected.unwrap()
        };
        std::thread::spawn(connect).join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        docker::ip(&["netns", "delete", &self.0]);
    }
}

fn inside(netns: &Path, args: &[&str]) {
    let mut nsenter = Command::new("nsenter");
    nsenter
        .arg(format!("--net={}", netns.display()))
        .arg("ip")
        .args(args);
    let output = nsenter.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
}

/// A link between a container's network and the client's.
fn link(netns: &Path, client: &Namespace, name: &str, (own, others): (&str, &str)) {
    let (own, others) = (format!("{own}/24"), format!("{others}/24"));
    let make = [
        "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", &client.0,
    ];
    inside(netns, &make);
    inside(netns, &["addr", "add", &own, "dev", "eth0"]);
    inside(netns, &["link", "set", "eth0", "up"]);
    inside(&client.path(), &["addr", "add", &others, "dev", name]);
    inside(&client.path(), &["link", "set", name, "up"]);
}

fn echoes(connection: &mut std::net::TcpStream, word: &str) {
    use std::io::Write;
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(word.as_bytes()).unwrap();
    let mut answer = vec![0; word.len()];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(answer, word.as_bytes());
}

#[test]
fn an_open_connection_goes_on_where_the_container_has_another_address() {
    let name = "an_open_connection_goes_on_where_the_container_has_another_address";
    let script = "exec /bin/busybox nc -l -p 7000 -e /bin/busybox cat";
    if !nix::unistd::geteuid().is_root() {
        return skip(name, "needs root");
    }
    let client = Namespace::new("client");
    let mut connection = None;
    let connect = |_: &Place, keeper: &Keeper| {
        let netns = ums_node::container::netns_path(&keeper.status().unwrap());
        link(&netns, &client, "old", OLD);
        let mut open = client.connect(&format!("{}:7000", OLD.0));
        echoes(&mut open, "before the move");
        connection = Some(open);
    };
    let carry = DumpRequest {
        connections: Connections::Carry,
        ..CLOSE
    };
    let Some(from) = departed_as(name, script, connect, carry) else {
        return;
    };
    let mut connection = connection.expect("it was opened");
    // Nothing of what is left there reaches the client any more.
    inside(&client.path(), &["link", "delete", "old"]);
    use std::io::Write;
    connection.write_all(b"sent meanwhile").unwrap();

    let to = Arrival::new(&from.bundle, from.root.path());
    let mut create = to.placed();
    // The engine's network, and in it the address that the connections know.
    let netns = ums_node::container::netns_path(&to.keeper.status().unwrap());
    link(&netns, &client, "new", NEW);
    inside(
        &netns,
        &["addr", "add", &format!("{}/32", OLD.0), "dev", "lo"],
    );
    inside(&netns, &["route", "add", "default", "via", NEW.1]);
    inside(
        &client.path(),
        &["addr", "add", &format!("{}/32", OLD.1), "dev", "lo"],
    );
    inside(&client.path(), &["link", "set", "lo", "up"]);
    restore_as(&to.keeper, &from.images, &from.stored, Connections::Carry);
    assert!(create.wait().unwrap().success());
    to.keeper.call(&Request::Resume, &[]).unwrap();
    // Not before: where a packet finds no socket yet, its sender is told that there is none.
    inside(&client.path(), &["route", "add", OLD.0, "via", NEW.0]);
    let mut answer = [0; 14];
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"sent meanwhile");
    echoes(&mut connection, "after the move");

    drop(connection);
    wait_until("it ends with its connection", || to.ended());
    to.keeper.call(&Request::Leave, &[]).unwrap();
    to.offers.withdraw(ID).unwrap();
    to.delete();
    from.over();
}

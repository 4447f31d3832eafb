//! The package and its unit: what it says of a stock host, an update under a running service, and what is
//! left when it is gone.

use serde_json::Value;
use ums_testbed::vm::machine::Machine;
use ums_testbed::vm::pair::{self, install};

use crate::{moved, redis, said, stock, with_ums};

#[test]
fn doctor_finds_stock_hosts_fit() {
    let Some(pair) = with_ums("doctor_finds_stock_hosts_fit") else {
        return;
    };
    for machine in pair.machines() {
        let done = machine.run("ums doctor --json").expect("an answer");
        let findings: Value = serde_json::from_str(&done.output).expect("an object");
        assert_eq!(findings["fit"], true, "{}: {findings:#}", machine.name());
        assert_eq!(done.code(), Some(0), "{}", done.all());
    }
}

/// The process id of Redis, as the host sees it.
fn init(machine: &Machine) -> String {
    machine.ok("pgrep -xo redis-server").expect("Redis runs")
}

/// How many hear what Redis publishes.
fn listeners(machine: &Machine) -> String {
    redis::asked(machine, "publish news something")
}

#[test]
fn a_service_and_its_connections_live_through_an_update_of_the_package() {
    let test = "a_service_and_its_connections_live_through_an_update_of_the_package";
    let Some(pair) = with_ums(test) else {
        return;
    };
    let (here, there) = (&pair.debian12, &pair.debian13);
    redis::start(here, 100);
    let before = redis::digest(here);
    let listen = redis::client(here.release(), "subscribe news");
    there
        .ok(&format!(
            "systemd-run --quiet --unit listener sh -c '{listen}'"
        ))
        .expect("a client");
    let heard = format!(
        "test \"$({})\" = 1",
        redis::client(here.release(), "publish news x")
    );
    here.until("a listener", 20, &heard)
        .expect("it is connected");
    let (service, agent) = (init(here), here.ok("pgrep -fo '^/usr/bin/ums-agent serve'"));
    let package = pair::package().expect("a package");
    let name = package.file_name().expect("a file").display().to_string();
    here.ok(&format!(
        "cd /root && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --reinstall ./{name}"
    ))
    .expect("it is updated");
    here.until("an answer of the next Coordinator", 20, "ums list")
        .unwrap_or_else(|error| panic!("{error:#}\n{}", said(here)));
    assert_eq!(init(here), service, "the service was started again");
    let next = here
        .ok("pgrep -fo '^/usr/bin/ums-agent serve'")
        .expect("an agent");
    assert_ne!(
        Ok(next),
        agent.map_err(|error| error.to_string()),
        "the same agent"
    );
    assert_eq!(listeners(here), "1");
    moved(&pair, here, "redis");
    assert_eq!(listeners(there), "1");
    assert_eq!(redis::digest(there), before);
}

/// All that a machine has and that a package could leave behind, one line each. What apt and systemd
/// note down about any package is left out.
const INVENTORY: &str = r"
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp \
    -o -path /var/log -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt \
    -o -path /var/lib/systemd -o -path /root/work \) -prune -o -print | sed 's/^/file /'
find /run /tmp /dev -iname '*ums*' | sed 's/^/file /'
systemctl list-unit-files --no-legend | awk '{print $1, $2}' | sed 's/^/unit /'
getent passwd | sed 's/^/user /'
getent group | sed 's/^/group /'
ps -eo args= | grep -E '[u]ms|[c]riu' | sed 's/^/process /'
find /sys/fs/cgroup -type d -name '*ums*' | sed 's/^/control group /'
ip -o link | awk '{print $2}' | sed 's/^/interface /'
ip netns list | sed 's/^/namespace /'
nft list tables | sed 's/^/table /'
grep ums /proc/self/mounts | sed 's/^/mount /'
true
";

/// A service of what every Debian has, with a client that has been served.
const A_SERVICE: &str = r"
mkdir -p /root/work/web/bin /root/work/web/dev /root/work/web/proc /root/work/web/sys /root/work/web/tmp
cp /bin/busybox /root/work/web/bin/
ums run web --rootfs /root/work/web --memory 64M --publish 8080:80 -- /bin/busybox httpd -f -p 80 -h /bin
curl -sS --retry 20 --retry-all-errors -o /dev/null http://$(hostname -I | cut -d' ' -f1):8080/busybox
";

#[test]
fn the_package_is_purged_without_a_trace() {
    let Some(pair) = stock("the_package_is_purged_without_a_trace") else {
        return;
    };
    let package = pair::package().expect("a package");
    for machine in pair.machines() {
        let before = machine.ok(INVENTORY).expect("an inventory");
        install(machine, &package, "/root/work").expect("it is installed");
        let name = machine.name();
        let identity = format!(
            "cd /root/work && ums ca init --dir ca && ums ca issue {name} --dir ca --out pki && \
             install -d -m 700 /var/lib/ums/pki && cp pki/* /var/lib/ums/pki/ && \
             echo 'system = \"{name}\"' >/etc/ums/ums.toml && systemctl restart ums"
        );
        machine.ok(&identity).expect("a certificate");
        machine
            .until("an answer", 20, "ums list")
            .unwrap_or_else(|error| {
                panic!("{error:#}\n{}", said(machine));
            });
        machine
            .ok(&format!("set -e\n{A_SERVICE}"))
            .unwrap_or_else(|error| {
                panic!("{error:#}\n{}", said(machine));
            });
        // Nobody is left alone with a service.
        let refused = machine.run("DEBIAN_FRONTEND=noninteractive apt-get purge -q -y ums");
        let refused = refused.expect("it ends");
        assert_ne!(refused.code(), Some(0), "{}", refused.all());
        assert!(
            refused.all().contains("services are here: web"),
            "{}",
            refused.all()
        );
        machine.ok("ums rm web").expect("removed");
        machine
            .ok("DEBIAN_FRONTEND=noninteractive apt-get purge -q -y ums")
            .expect("purged");
        let after = machine.ok(INVENTORY).expect("an inventory");
        let new: Vec<&str> = after
            .lines()
            .filter(|line| !before.lines().any(|was| was == *line))
            .collect();
        assert!(new.is_empty(), "{} has since: {new:#?}", machine.name());
    }
}

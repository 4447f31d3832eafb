//! The C/R module with real CRIU and runc: one container held by keepers on one node.

mod support;

use support::*;

#[test]
fn a_container_is_checkpointed_held_and_goes_on_where_it_was() {
    let Some((bundle, lower)) = ready("a_container_is_checkpointed_held_and_goes_on_where_it_was")
    else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a");
    let b = Place::new(&bundle, lower.path(), "b");
    let source = a.start();
    assert_eq!(run(&a, &source, COUNTING).phase, Phase::Running);
    wait_until("it counts", || last_tick(&a.log()) > 5);

    let (images, stored) = checkpoint(&source);
    assert_eq!(source.status().unwrap().phase, Phase::Frozen);
    let frozen_at = last_tick(&a.log());

    let destination = b.start();
    copy_upper(&a, &b);
    let held = restore(&destination, &images, &stored);
    assert_eq!(held.phase, Phase::Held);
    assert_eq!(b.log(), "", "a held container has not executed");
    assert_eq!(
        last_tick(&a.log()),
        frozen_at,
        "a frozen container does not execute"
    );
    // A repeated request finds it done.
    assert_eq!(restore(&destination, &images, &stored).phase, Phase::Held);

    assert_eq!(
        destination.call(&Request::Resume, &[]).unwrap().phase,
        Phase::Running
    );
    wait_until("it counts on", || last_tick(&b.log()) > frozen_at + 5);
    let first = b.log().lines().next().unwrap().to_owned();
    assert_eq!(
        first,
        format!("tick {}", frozen_at + 1),
        "no tick lost and none repeated"
    );
    wait_until("every page is in", || {
        destination.status().unwrap().pages_missing == 0
    });

    // The frozen one dies without executing another instruction.
    source.call(&Request::Kill, &[]).unwrap();
    assert_eq!(last_tick(&a.log()), frozen_at);
    for (keeper, place) in [(source, a), (destination, b)] {
        keeper.call(&Request::Quit, &[]).unwrap();
        wait_until("the cgroup is gone", || !place.cgroup_dir().exists());
    }
}

#[test]
fn a_restore_finds_its_criu_ready_in_the_control_groups() {
    let Some((bundle, lower)) = ready("a_restore_finds_its_criu_ready_in_the_control_groups")
    else {
        return;
    };
    let [a, b, c] = ["a", "b", "c"].map(|name| Place::new(&bundle, lower.path(), name));
    let source = a.start();
    run(&a, &source, COUNTING);
    wait_until("it counts", || last_tick(&a.log()) > 5);
    let (images, stored) = checkpoint(&source);
    let parts =
        |status: &Status| -> Vec<Part> { status.spans.iter().map(|span| span.part).collect() };
    let dumped = parts(&source.status().unwrap());
    assert!(dumped.contains(&Part::Dump), "{dumped:?}");

    let members = |place: &Place| -> Vec<String> {
        let members = std::fs::read_to_string(place.cgroup_dir().join("cgroup.procs"));
        members.unwrap().lines().map(str::to_owned).collect()
    };
    let destination = b.start();
    for _ in 0..2 {
        destination.call(&Request::Prepare, &[]).unwrap();
        assert_eq!(members(&b).len(), 1, "one CRIU, and only one");
    }
    let criu = members(&b);
    copy_upper(&a, &b);
    let held = restore(&destination, &images, &stored);
    assert!(
        members(&b).contains(&criu[0]),
        "another CRIU has restored it"
    );
    assert!(parts(&held).contains(&Part::Restore), "{held:?}");
    let frozen_at = last_tick(&a.log());
    destination.call(&Request::Resume, &[]).unwrap();
    wait_until("it counts on", || last_tick(&b.log()) > frozen_at + 5);

    // One that is never needed goes with its keeper.
    let spare = c.start();
    spare.call(&Request::Prepare, &[]).unwrap();
    for (keeper, place) in [(source, a), (destination, b), (spare, c)] {
        keeper.call(&Request::Quit, &[]).unwrap();
        wait_until("the cgroup is gone", || !place.cgroup_dir().exists());
    }
}

/// Number, seconds since boot and process id of a line of [`TELLING`].
fn told(line: &str) -> (u32, f64, u32) {
    let words: Vec<&str> = line.split(' ').collect();
    (
        words[1].parse().unwrap(),
        words[2].parse().unwrap(),
        words[3].parse().unwrap(),
    )
}

#[test]
fn process_ids_and_clocks_go_on_where_the_clock_of_the_node_is_another() {
    let name = "process_ids_and_clocks_go_on_where_the_clock_of_the_node_is_another";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a5");
    let b = Place::new(&bundle, lower.path(), "b5");
    let source = a.start();
    run(&a, &source, TELLING);
    wait_until("it counts", || last_tick(&a.log()) > 3);
    let (images, stored) = checkpoint(&source);
    let before = told(a.log().lines().last().unwrap());

    // A node that was booted a day earlier.
    let agent = env!("CARGO_BIN_EXE_ums-agent");
    let earlier = [
        "unshare",
        "--time",
        "--boottime",
        "86400",
        "--monotonic",
        "86400",
        agent,
        "keeper",
    ];
    let earlier = earlier.map(str::to_owned);
    let destination = Keeper::start(&earlier, &b.config).unwrap();
    let time_of = |process: String| std::fs::read_link(format!("/proc/{process}/ns/time")).unwrap();
    let keeper = destination.status().unwrap().keeper_pid;
    assert_ne!(time_of(keeper.to_string()), time_of("self".to_owned()));
    copy_upper(&a, &b);
    restore(&destination, &images, &stored);
    destination.call(&Request::Resume, &[]).unwrap();
    wait_until("it counts on", || last_tick(&b.log()) > before.0 + 2);
    let after = told(b.log().lines().next().unwrap());
    assert_eq!(after.2, before.2, "the same process id");
    let passed = after.1 - before.1;
    assert!(
        (0.0..PATIENCE.as_secs_f64()).contains(&passed),
        "{before:?} then {after:?}"
    );
    source.call(&Request::Quit, &[]).unwrap();
    destination.call(&Request::Quit, &[]).unwrap();
}

#[test]
fn a_container_whose_keeper_is_lost_with_pages_missing_is_killed() {
    let name = "a_container_whose_keeper_is_lost_with_pages_missing_is_killed";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a6");
    let b = Place::new(&bundle, lower.path(), "b6");
    let source = a.start();
    run(&a, &source, COUNTING);
    let (images, stored) = checkpoint(&source);
    let destination = b.start();
    copy_upper(&a, &b);
    restore(&destination, &images, &stored);
    let cgroup = ums_checkpoint::cgroup::Cgroup::at(&b.config.cgroup).unwrap();
    assert!(!cgroup.processes().is_empty());
    kill(destination.status().unwrap().keeper_pid);
    wait_until("nothing of it executes", || cgroup.processes().is_empty());
    assert_eq!(b.log(), "");
    cgroup.remove().unwrap();
    source.call(&Request::Thaw, &[]).unwrap();
    source.call(&Request::Quit, &[]).unwrap();
}

#[test]
fn an_abandoned_checkpoint_lets_the_source_go_on_and_a_second_one_works() {
    let name = "an_abandoned_checkpoint_lets_the_source_go_on_and_a_second_one_works";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a2");
    let b = Place::new(&bundle, lower.path(), "b2");
    let source = a.start();
    run(&a, &source, COUNTING);
    wait_until("it counts", || last_tick(&a.log()) > 3);
    let (images, stored) = checkpoint(&source);
    let destination = b.start();
    copy_upper(&a, &b);
    restore(&destination, &images, &stored);

    // Abandoned while held: the restored one dies without a trace, the source goes on.
    destination.call(&Request::Quit, &[]).unwrap();
    assert_eq!(b.log(), "");
    let frozen_at = last_tick(&a.log());
    assert_eq!(
        source.call(&Request::Thaw, &[]).unwrap().phase,
        Phase::Running
    );
    wait_until("the source counts on", || {
        last_tick(&a.log()) > frozen_at + 3
    });

    let (_images, _stored) = checkpoint(&source);
    source.call(&Request::Thaw, &[]).unwrap();
    source.call(&Request::Quit, &[]).unwrap();
    wait_until("the cgroups are gone", || {
        !a.cgroup_dir().exists() && !b.cgroup_dir().exists()
    });
}

#[test]
fn what_the_destination_must_know_is_in_the_images() {
    let name = "what_the_destination_must_know_is_in_the_images";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a3");
    let source = a.start();
    run(&a, &source, COUNTING);
    let (images, _stored) = checkpoint(&source);
    let info = std::fs::read(images.path().join(INFO_NAME)).unwrap();
    let info: CheckpointInfo = serde_json::from_slice(&info).unwrap();
    assert_eq!(info.stdio.len(), 2);
    assert!(info.stdio.iter().all(|name| name.starts_with("pipe:[")));
    source.call(&Request::Quit, &[]).unwrap();
}

#[test]
fn a_service_that_exited_can_not_be_checkpointed_and_says_so() {
    let name = "a_service_that_exited_can_not_be_checkpointed_and_says_so";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a4");
    let source = a.start();
    run(&a, &source, "exit 7");
    wait_until("it has exited", || {
        source.status().unwrap().phase == Phase::Dead { code: 7 }
    });
    let images = MemoryDir::new(1 << 20).unwrap();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let error = source
        .call(&Request::Dump(CLOSE), &[images.as_fd(), theirs.as_fd()])
        .unwrap_err();
    assert!(error.to_string().contains("exited with code 7"), "{error}");
    source.call(&Request::Quit, &[]).unwrap();
}

/// The pump that appends to a place's log.
fn log_pump(place: &Place) -> Option<i32> {
    let log = place.config.log.display().to_string();
    let is_pump = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.len() > 2 && words[1] == b"log" && words[2] == log.as_bytes()
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(is_pump)
}

#[test]
fn a_service_that_logs_outlives_its_logs_pump_and_its_keeper() {
    let name = "a_service_that_logs_outlives_its_logs_pump_and_its_keeper";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a8");
    let source = a.start();
    run(&a, &source, COUNTING);
    wait_until("it counts", || last_tick(&a.log()) > 3);

    kill(log_pump(&a).expect("a pump"));
    let before = last_tick(&a.log());
    wait_until("it counts on", || last_tick(&a.log()) > before + 5);

    kill(source.status().unwrap().keeper_pid);
    wait_until("the keeper is gone", || {
        Keeper::connect(&a.config.socket).is_err_and(|error| error.is_gone())
    });
    let before = last_tick(&a.log());
    wait_until("it counts on without its keeper", || {
        last_tick(&a.log()) > before + 5
    });
    let cgroup = ums_checkpoint::cgroup::Cgroup::at(&a.config.cgroup).unwrap();
    ums_checkpoint::freezer::Freezer::of(&cgroup)
        .unwrap()
        .kill()
        .unwrap();
    cgroup.remove().unwrap();
    wait_until("the pump ends with who writes", || log_pump(&a).is_none());
}

#[test]
fn a_keeper_that_is_busy_is_not_one_that_is_gone() {
    let name = "a_keeper_that_is_busy_is_not_one_that_is_gone";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a9");
    let source = a.start();
    let connect = || Keeper::connect(&a.config.socket).unwrap();
    // More than it serves at once, and it has accepted all of those.
    let mut idle: Vec<Keeper> = (0..31).map(|_| connect()).collect();
    for keeper in &idle {
        keeper.status().unwrap();
    }
    let waiting = connect();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| waiting.status().map(|status| status.phase));
        idle.pop();
        assert_eq!(asked.join().unwrap().unwrap(), Phase::Created);
    });
    drop((idle, waiting));
    source.call(&Request::Quit, &[]).unwrap();
    wait_until("it is gone", || {
        Keeper::connect(&a.config.socket).is_err_and(|error| error.is_gone())
    });
}

#[test]
fn a_keeper_may_hold_as_many_descriptors_as_it_is_allowed() {
    let name = "a_keeper_may_hold_as_many_descriptors_as_it_is_allowed";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a10");
    let agent = env!("CARGO_BIN_EXE_ums-agent");
    let lowered = ["prlimit", "--nofile=256:4096", agent, "keeper"].map(str::to_owned);
    let source = Keeper::start(&lowered, &a.config).unwrap();
    let pid = source.status().unwrap().keeper_pid;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = files.unwrap().split_whitespace().collect();
    assert_eq!(words[3..5], ["4096", "4096"]);
    source.call(&Request::Quit, &[]).unwrap();
}

#[test]
fn what_fails_leaves_no_control_group() {
    let name = "what_fails_leaves_no_control_group";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    let mut a = Place::new(&bundle, lower.path(), "a11");
    a.config.devices = vec!["c 1:3 everything".to_owned()];
    let agent = env!("CARGO_BIN_EXE_ums-agent").to_owned();
    let error = Keeper::start(&[agent, "keeper".to_owned()], &a.config).unwrap_err();
    assert!(
        error.to_string().contains("is not a device rule"),
        "{error}"
    );
    let cgroup = a.cgroup_dir();
    assert!(!cgroup.exists(), "{}", cgroup.display());
}

#[test]
fn who_lacks_the_privilege_is_told_that_userfaultfd_is_not_permitted() {
    if !nix::unistd::geteuid().is_root() {
        skip("who_lacks_the_privilege_is_told", "needs root");
        return;
    }
    let agent = env!("CARGO_BIN_EXE_ums-agent");
    let with = |bounding: &str| {
        let mut setpriv = std::process::Command::new("setpriv");
        let output = setpriv.args(["--bounding-set", bounding, agent, "probe"]);
        let output = output.output().expect("setpriv is of util-linux");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let said = with("-sys_ptrace");
    assert!(said.contains("CAP_SYS_PTRACE"), "{said}");
}

/// Has the keeper checkpoint its container while `meanwhile` is done, and returns what it says.
fn dump_while(
    keeper: &Keeper,
    request: DumpRequest,
    meanwhile: impl FnOnce(),
) -> Result<Status, ums_checkpoint::keeper::client::Error> {
    let images = MemoryDir::new(64 << 20).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        let images = &images;
        let dump = scope.spawn(move || {
            let fds = [images.as_fd(), theirs.as_fd()];
            keeper.call(&Request::Dump(request), &fds)
        });
        meanwhile();
        drop(page_server::serve(
            &mut ours,
            || {},
            |run, stream| {
                let mut bytes = vec![0; run.pages as usize * PAGE_LEN];
                Ok(stream.read_exact(&mut bytes)?)
            },
        ));
        drop(ours);
        dump.join().unwrap()
    })
}

/// The CRIU that a keeper runs, once it is there.
fn criu_of(keeper: i32) -> nix::unistd::Pid {
    let mut found = None;
    wait_until("CRIU is there", || {
        let children = format!("/proc/{keeper}/task");
        let threads = std::fs::read_dir(children).unwrap().filter_map(Result::ok);
        let children = threads
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        let pids: Vec<i32> = children
            .flat_map(|text| {
                let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
                pids.collect::<Vec<i32>>()
            })
            .collect();
        found = pids.into_iter().find(|pid| {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            command.is_ok_and(|command| command.contains("swrk"))
        });
        found.is_some()
    });
    nix::unistd::Pid::from_raw(found.unwrap())
}

#[test]
fn a_criu_that_hangs_does_not_keep_the_service_frozen() {
    let Some((bundle, lower)) = ready("a_criu_that_hangs_does_not_keep_the_service_frozen") else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a10");
    let source = a.start();
    let status = run(&a, &source, COUNTING);
    wait_until("it counts", || last_tick(&a.log()) > 3);
    let impatient = DumpRequest {
        freeze_ms: 500,
        ..CLOSE
    };
    let result = dump_while(&source, impatient, || {
        let criu = criu_of(status.keeper_pid);
        nix::sys::signal::kill(criu, nix::sys::signal::Signal::SIGSTOP).unwrap();
    });
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("given up after 0.5 s and the service runs on"),
        "{error}"
    );
    let frozen_at = last_tick(&a.log());
    wait_until("it counts on", || last_tick(&a.log()) > frozen_at + 3);
    // And it can be tried again.
    let (_images, _stored) = checkpoint(&source);
    source.call(&Request::Thaw, &[]).unwrap();
    source.call(&Request::Quit, &[]).unwrap();
}

#[test]
fn a_checkpoint_is_given_up_when_it_is_cut_off() {
    let Some((bundle, lower)) = ready("a_checkpoint_is_given_up_when_it_is_cut_off") else {
        return;
    };
    let a = Place::new(&bundle, lower.path(), "a11");
    let source = a.start();
    let status = run(&a, &source, COUNTING);
    let patient = DumpRequest {
        freeze_ms: 3_600_000,
        ..CLOSE
    };
    let result = dump_while(&source, patient, || {
        let criu = criu_of(status.keeper_pid);
        nix::sys::signal::kill(criu, nix::sys::signal::Signal::SIGSTOP).unwrap();
        let other = Keeper::connect(&a.config.socket).unwrap();
        assert_eq!(
            other.call(&Request::Cut, &[]).unwrap().phase,
            Phase::Running
        );
        // Nothing is under way now, and that is as good.
        other.call(&Request::Cut, &[]).unwrap();
    });
    let error = result.unwrap_err().to_string();
    assert!(error.contains("given up on request"), "{error}");
    let frozen_at = last_tick(&a.log());
    wait_until("it counts on", || last_tick(&a.log()) > frozen_at + 3);
    source.call(&Request::Quit, &[]).unwrap();
}

#[test]
fn a_process_that_a_signal_has_stopped_stays_stopped_and_goes_on_when_it_is_told_to() {
    let name = "a_process_that_a_signal_has_stopped_stays_stopped_and_goes_on_when_it_is_told_to";
    let Some((bundle, lower)) = ready(name) else {
        return;
    };
    // The child writes when it goes on; its parent says whether it stands, and lets it go on later.
    let script = "(while true; do echo on >> /child; sleep 0.02; done) & c=$!; kill -STOP $c; i=0; \
                  while true; do i=$((i+1)); read a b s rest < /proc/$c/stat; echo tick $i $s; \
                  if [ $i -gt 100 ]; then kill -CONT $c; fi; sleep 0.02; done";
    let a = Place::new(&bundle, lower.path(), "a12");
    let b = Place::new(&bundle, lower.path(), "b12");
    let source = a.start();
    run(&a, &source, script);
    wait_until("the child stands", || a.log().ends_with(" T\n"));
    let (images, stored) = checkpoint(&source);
    let frozen_at = last_tick(&a.log());
    let destination = b.start();
    copy_upper(&a, &b);
    restore(&destination, &images, &stored);
    destination.call(&Request::Resume, &[]).unwrap();
    wait_until("it counts on", || last_tick(&b.log()) > frozen_at + 3);
    assert!(
        b.log().lines().all(|line| line.ends_with(" T")),
        "{}",
        b.log()
    );
    std::fs::write(b.config.upper.join("go"), "").unwrap();
    wait_until("the child goes on", || {
        b.config.upper.join("child").exists()
    });
    for keeper in [source, destination] {
        keeper.call(&Request::Quit, &[]).unwrap();
    }
}

/// An agent of a later release asks for what this one's keepers don't know.
#[test]
fn a_keeper_answers_what_it_does_not_understand() {
    let Some(bundle) = bundle() else {
        return skip(
            "a_keeper_answers_what_it_does_not_understand",
            "no C/R bundle",
        );
    };
    let root = rootfs();
    let place = Place::new(&bundle, root.path(), "asked");
    let keeper = place.start();
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    let address = UnixAddr::new(&place.config.socket).unwrap();
    connect(socket.as_raw_fd(), &address).unwrap();
    message::send(socket.as_fd(), &"Dance", &[]).unwrap();
    let answer = message::receive::<Reply>(socket.as_fd()).unwrap();
    let Some((Reply::Failed { reason, status }, _)) = answer else {
        panic!("{answer:?}");
    };
    assert!(reason.contains("earlier release"), "{reason}");
    assert_eq!(status.protocol, PROTOCOL);
    message::send(socket.as_fd(), &Request::Status, &[]).unwrap();
    let answer = message::receive::<Reply>(socket.as_fd()).unwrap();
    assert!(matches!(answer, Some((Reply::Done(_), _))), "{answer:?}");
    keeper.call(&Request::Quit, &[]).unwrap();
}

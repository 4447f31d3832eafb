//! Containers that an engine has made.

use super::table::Evidence::Test;
use super::table::Outcome::{Carried, Declared, GivenUp, Refused};
use super::table::{Row, row};

const OF_ENGINE: &str = "the engine, runc and `/proc` are asked before the freeze";
const PLACE: &str = "its engine keeps its place in the network until the Frontman retires";
const TOLD: &str =
    "heard by the engine's events and seen in the kernel, last right before the commit";
const DOCKER: &str = "a_redis_of_docker_moves_and_its_clients_do_not_notice";
const PODMAN: &str = "a_redis_of_podman_moves_and_its_clients_do_not_notice";
const IN_THE_WAY: &str = "what_stands_in_the_way_is_named";
const SETTINGS: &str = "what_is_not_kept_has_to_be_accepted";

pub(crate) const CONTAINERS: &[Row] = &[
    row(
        "container of `docker run` under runc, with a named volume",
        Carried,
        "adopted: nothing is prepared",
        Test(DOCKER),
    ),
    row("the same of `podman run`", Carried, "adopted", Test(PODMAN)),
    row(
        "open connection through a published port, and new ones to it",
        Carried,
        PLACE,
        Test(DOCKER),
    ),
    row(
        "open connection from another container of the engine, and new ones from there",
        Carried,
        PLACE,
        Test(PODMAN),
    ),
    row(
        "`docker stop`, `kill`, `pause`, `update`, the engine's end before the commit",
        GivenUp,
        TOLD,
        Test("what_docker_is_told_before_the_commit_holds"),
    ),
    row(
        "`podman kill` before the commit",
        GivenUp,
        TOLD,
        Test("what_podman_is_told_is_noticed"),
    ),
    row(
        "`docker rm --force` after the commit",
        Carried,
        "the service runs at its new place alone",
        Test("what_docker_is_told_after_the_commit_finds_the_service_gone"),
    ),
    row(
        "`docker restart` of a container that has left",
        Refused,
        "it finds no program, and the container is removed",
        Test("a_container_that_has_left_is_not_started_again"),
    ),
    row(
        "another runtime than runc",
        Refused,
        OF_ENGINE,
        Test(IN_THE_WAY),
    ),
    row(
        "`--privileged`, `--device`, namespaces of others, `-t`, `-i`",
        Refused,
        OF_ENGINE,
        Test(IN_THE_WAY),
    ),
    row(
        "process of `docker exec`, paused container",
        Refused,
        OF_ENGINE,
        Test("what_stands_in_the_way_of_a_container_is_told_before_anything_is_done"),
    ),
    row(
        "restart policy, health check, limits of processors and processes, stop signal",
        Declared,
        OF_ENGINE,
        Test(SETTINGS),
    ),
    row(
        "directory of the host (`-v /path:…`)",
        Declared,
        OF_ENGINE,
        Test(SETTINGS),
    ),
];

//! The fault matrix, with real systems: every step of a migration × everything that can break, and
//! what must hold afterwards ([`cell`]). A sample by default, all with `cargo xtask test --long`.

#[path = "../common/mod.rs"]
mod common;

mod cell;
mod fault;
mod point;

use cell::{Arena, Cell, timed};
use fault::FAULTS;
use point::POINTS;

fn cells() -> Vec<Cell> {
    let all = POINTS
        .into_iter()
        .flat_map(|point| FAULTS.map(|fault| Cell { point, fault }));
    all.filter(|cell| cell.fault.fits(cell.point)).collect()
}

#[test]
fn try_some() {
    let filter = std::env::var("UMS_MATRIX").unwrap_or_default();
    let chosen: Vec<_> = cells()
        .into_iter()
        .filter(|cell| filter.split('|').any(|part| cell.name().contains(part)))
        .collect();
    eprintln!("{} of {} cells", chosen.len(), cells().len());
    let (arena, seconds) = timed(|| Arena::new("matrix"));
    eprintln!("arena {seconds:.1} s");
    let Some(mut arena) = arena else { return };
    let mut failed = 0;
    for cell in chosen {
        let (ended, seconds) = timed(|| arena.run(cell));
        match ended {
            Ok(ending) => eprintln!("{seconds:5.1} s  {}: {ending:?}", cell.name()),
            Err(error) => {
                eprintln!("{seconds:5.1} s  {}: FAILED {error:#}", cell.name());
                eprintln!(
                    "a: {}\nb: {}",
                    arena.testbed.a.said(),
                    arena.testbed.b.said()
                );
                failed += 1;
                let Some(new) = Arena::new("matrix") else {
                    return;
                };
                arena = new;
            }
        }
    }
    common::remove(arena.testbed);
    assert_eq!(failed, 0);
}

use std::io::Read;

use super::*;

/// This process runs; what it does not touch is as if it were frozen.
#[test]
fn pages_are_found_by_both_ways_to_ask_and_read() {
    const PAGES: u64 = 64;
    const PAGE: u64 = PAGE_LEN as u64;
    let mut memory = vec![0_u8; (PAGES * PAGE) as usize];
    let base = (memory.as_ptr() as u64).next_multiple_of(PAGE);
    let offset = (base - memory.as_ptr() as u64) as usize;
    for page in [1, 2, 5_usize] {
        memory[offset + page * PAGE_LEN] = page as u8;
    }
    let at = |page: u64| base + page * PAGE;
    let pid = std::process::id().cast_signed();
    let source = PageSource::open(&[Process { pid, inner: 7 }]).unwrap();
    let owner = PageOwner::of_process(7);
    assert!(
        source
            .of_dumping(owner, at(1), at(9))
            .contains(at(1), at(9))
    );
    assert!(
        source
            .of_dumping(PageOwner::of_process(8), at(1), at(9))
            .is_empty()
    );
    let task = &source.tasks[0];
    let areas = task.areas.iter();
    let mut around = areas.filter(|area| (area.mapping.start..area.mapping.end).contains(&base));
    let area = around.next().unwrap();
    for found in [
        task.held(area).unwrap(),
        entries::own_pages(&task.pagemap, area.mapping).unwrap(),
    ] {
        assert!(found.contains(at(1), at(3)) && found.contains(at(5), at(6)));
    }
    let (mut read, mut others) = (Vec::new(), 0);
    let except = |_| Ranges::from_iter([(at(2), at(3))]);
    let taken = source.each(When::Dumping, except, drop, |held| {
        let end = held.address + held.pages * PAGE;
        for page in (held.address..end).step_by(PAGE_LEN) {
            if !(at(0)..at(6)).contains(&page) {
                others += 1;
                continue;
            }
            assert_eq!((held.owner, held.flags), (owner, PE_LAZY | PE_PRESENT));
            let mut bytes = [0; PAGE_LEN];
            held.read_from(page).read_exact(&mut bytes).unwrap();
            read.push(bytes[0]);
        }
        Ok(())
    });
    assert_eq!(taken, Ok(()));
    read.retain(|byte| *byte != 0);
    assert_eq!(read, [1, 5]);
    assert!(others > 0, "a process has other memory too");
    std::hint::black_box(&memory);
}

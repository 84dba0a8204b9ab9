//! Watching the memory of the workers, the size of the change buffers, and the tip of a diamond.

use std::{collections::BTreeMap, fs};

use super::{Lasting, Soak, pause, world};

/// No worker may use more memory of its own.
const MOST_KILOBYTES: u64 = 200 << 10;
/// Nor grow more, once it has run for a while.
const MOST_GROWTH: u64 = 24 << 10;
/// A worker has run for a while after so many looks.
const WARM: usize = 10;
/// The change buffers together may not be larger.
const MOST_BUFFERS: u64 = 512 << 20;

pub fn run(soak: &Soak) {
    let mut session = Lasting::new(soak);
    // By process: its kind, and the kilobytes at each look.
    let mut memory: BTreeMap<String, (String, Vec<u64>)> = BTreeMap::new();
    let mut buffers = 0;
    while !soak.is_over() {
        let active = soak.active();
        let workers = session.session().try_rows(
            "SELECT pid, backend_type FROM pg_stat_activity WHERE backend_type LIKE 'pg_stream%'",
        );
        for worker in workers.unwrap_or_default() {
            let (pid, kind) = worker.split_once('|').expect("two columns");
            if let Some(kilobytes) = own_memory(pid) {
                let entry = memory.entry(pid.to_owned()).or_insert((kind.to_owned(), Vec::new()));
                entry.1.push(kilobytes);
            }
        }
        let size = session.session().try_rows(
            "SELECT sum(pg_relation_size(buffer_relid)) FROM pgstream.pgs_change_tracking",
        );
        match size {
            Ok(size) => buffers = size[0].parse().unwrap_or(0).max(buffers),
            Err(_) => session.session = None,
        }
        for torn in session.session().try_rows(world::TORN).unwrap_or_default() {
            soak.fail(format!("a diamond is torn: {torn}"));
        }
        drop(active);
        pause(1000);
    }
    for (pid, (kind, sizes)) in memory {
        let largest = sizes.iter().copied().max().unwrap_or(0);
        // What a large change takes for a moment is no growth.
        let (early, late) = sizes.split_at(sizes.len() / 2);
        let warm = early.get(WARM..).and_then(median);
        let growth = warm.zip(median(late)).map_or(0, |(warm, late)| late.saturating_sub(warm));
        if largest > MOST_KILOBYTES || growth > MOST_GROWTH {
            soak.fail(format!(
                "{kind} {pid} has used {largest} kB, {growth} kB more than before: {sizes:?}"
            ));
        }
        if sizes.len() > 2 * WARM {
            soak.report(|it| {
                it.notes.push(format!(
                    "{kind}: at most {largest} kB, grown by {growth} kB in the second half of {} s",
                    sizes.len()
                ));
            });
        }
    }
    if buffers > MOST_BUFFERS {
        soak.fail(format!("the change buffers took {buffers} bytes"));
    }
    soak.report(|it| it.notes.push(format!("change buffers: at most {} kB", buffers >> 10)));
}

fn median(sizes: &[u64]) -> Option<u64> {
    let mut sorted = sizes.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

/// What a process does not share with others.
fn own_memory(pid: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("RssAnon:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

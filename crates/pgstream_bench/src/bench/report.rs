//! What was measured, the bars, and both as text.

use super::operators;
use super::shapes::SHAPES;
use crate::table::{Table, ms, times};

/// Refresh of one shape at one size after one change, by each method, in milliseconds.
#[derive(Debug, Clone)]
pub struct Cell {
    pub shape: &'static str,
    pub rows: usize,
    pub changed: usize,
    pub by_hand: f64,
    pub differential: f64,
    pub full: f64,
    pub view: f64,
}

const MILLION: usize = 1_000_000;

impl Cell {
    fn to_floor(&self) -> f64 {
        self.differential / self.by_hand
    }

    /// One row at a million.
    fn is_small(&self) -> bool {
        self.rows == MILLION && self.changed == 1
    }

    /// 1 % or 10 % of 100 thousand.
    fn is_bulk(&self) -> bool {
        self.rows == 100_000 && self.changed >= 1000
    }

    /// Whether the cell meets its bar, if it has one.
    pub fn verdict(&self) -> Option<bool> {
        if self.is_small() {
            Some(self.differential < 2.0 && self.to_floor() <= 2.0)
        } else if self.is_bulk() {
            let beats_full = self.differential < self.full || self.by_hand >= self.full;
            Some(self.to_floor() <= 1.5 && beats_full)
        } else {
            None
        }
    }
}

/// A measure other than a cell, with its bar if it has one.
#[derive(Debug, Clone)]
pub struct Measure {
    pub what: String,
    pub measured: String,
    pub bar: String,
    pub passed: Option<bool>,
}

/// Everything measured in one run.
#[derive(Debug, Default)]
pub struct Report {
    machine: String,
    pub cells: Vec<Cell>,
    /// Shape, rows, and the milliseconds of creation and of CREATE TABLE AS with its key.
    pub creations: Vec<(&'static str, usize, f64, f64)>,
    pub measures: Vec<Measure>,
    pub operators: Vec<operators::Row>,
    failures: Vec<String>,
}

impl Report {
    pub fn new(machine: String) -> Report {
        Report { machine, ..Report::default() }
    }

    pub fn fail(&mut self, what: String) {
        eprintln!("  FAILED: {what}");
        self.failures.push(what);
    }

    pub fn measure(&mut self, what: &str, measured: String, bar: &str, passed: Option<bool>) {
        let verdict = passed.map_or("", verdict);
        eprintln!("{what}: {measured} {verdict}");
        let (what, bar) = (what.to_owned(), bar.to_owned());
        self.measures.push(Measure { what, measured, bar, passed });
    }

    pub fn plain(&self) -> String {
        format!(
            "{}\n\n{}\n{}\n{}\n{}\n{}",
            self.machine,
            self.matrix().plain(),
            self.operator_table().plain(),
            self.growth().plain(),
            self.bars().plain(),
            self.failures.iter().map(|f| format!("FAILED: {f}\n")).collect::<String>()
        )
    }

    pub fn markdown(&self) -> String {
        let failures: String = self.failures.iter().map(|f| format!("- FAILED: {f}\n")).collect();
        include_str!("benchmark.md")
            .replace("$MACHINE", &self.machine)
            .replace("$BARS\n", &self.bars().markdown())
            .replace("$MATRIX\n", &self.matrix().markdown())
            .replace("$OPERATORS\n", &self.operator_table().markdown())
            .replace("$GROWTH\n", &self.growth().markdown())
            .replace("$FAILURES\n", &failures)
    }

    fn matrix(&self) -> Table {
        let mut table = Table::new(&[
            "shape",
            "rows",
            "changed",
            "by hand",
            "differential",
            "FULL",
            "mat. view",
            "diff/hand",
            "FULL/diff",
            "view/diff",
            "bar",
        ]);
        for cell in &self.cells {
            table.push(vec![
                cell.shape.to_owned(),
                cell.rows.to_string(),
                cell.changed.to_string(),
                ms(cell.by_hand),
                ms(cell.differential),
                ms(cell.full),
                ms(cell.view),
                times(cell.to_floor()),
                times(cell.full / cell.differential),
                times(cell.view / cell.differential),
                cell.verdict().map_or("", verdict).to_owned(),
            ]);
        }
        table
    }

    /// One row for each operator and change.
    fn operator_table(&self) -> Table {
        let mut table = Table::new(&[
            "operator",
            "rows",
            "changed",
            "by hand",
            "differential",
            "mat. view",
            "diff/hand",
            "view/diff",
            "bar",
            "",
        ]);
        for row in &self.operators {
            let is_small = row.rows == MILLION && row.changed == 1;
            table.push(vec![
                row.name.to_owned(),
                row.rows.to_string(),
                row.changed.to_string(),
                row.floor.map_or_else(String::new, ms),
                ms(row.differential),
                ms(row.view),
                row.floor.map_or_else(String::new, |floor| times(row.differential / floor)),
                times(row.view / row.differential),
                if is_small { verdict(row.differential <= 5.0).to_owned() } else { String::new() },
                if row.is_whole { "evaluated as a whole".to_owned() } else { String::new() },
            ]);
        }
        table
    }

    /// The cost of the same 100 rows in the smallest and in the largest table.
    fn growth(&self) -> Table {
        let mut table = Table::new(&[
            "100 rows changed",
            "from rows",
            "to rows",
            "by hand",
            "differential",
            "bar",
        ]);
        for (shape, small, large) in self.growths() {
            let growth = large.differential / small.differential;
            table.push(vec![
                shape.to_owned(),
                small.rows.to_string(),
                large.rows.to_string(),
                format!("{} x", times(large.by_hand / small.by_hand)),
                format!("{} x", times(growth)),
                if large.rows == MILLION {
                    verdict(growth <= 1.3).to_owned()
                } else {
                    String::new()
                },
            ]);
        }
        table
    }

    fn growths(&self) -> Vec<(&'static str, &Cell, &Cell)> {
        let growth = |name: &'static str| {
            let cells = || self.cells.iter().filter(move |c| c.shape == name && c.changed == 100);
            let small = cells().min_by_key(|cell| cell.rows)?;
            let large = cells().max_by_key(|cell| cell.rows)?;
            (small.rows < large.rows).then_some((name, small, large))
        };
        SHAPES.iter().filter_map(|shape| growth(shape.name)).collect()
    }

    /// The bars, with the worst of what each is about.
    fn bars(&self) -> Table {
        let mut table = Table::new(&["measure", "bar", "measured", "verdict"]);
        let mut push = |what: &str, bar: &str, measured: String, passed: Option<bool>| {
            let verdict = passed.map_or("", verdict).to_owned();
            table.push(vec![what.to_owned(), bar.to_owned(), measured, verdict]);
        };
        let small: Vec<&Cell> = self.cells.iter().filter(|cell| cell.is_small()).collect();
        if let Some(worst) = slowest(&small, |cell| cell.differential) {
            let (bar, shown) =
                ("under 2 ms", format!("{} ms ({})", ms(worst.differential), worst.shape));
            push("1 row of 1 million, slowest shape", bar, shown, Some(worst.differential < 2.0));
        }
        if let Some(worst) = slowest(&small, Cell::to_floor) {
            let (bar, shown) = ("at most 2 x the floor", with_count(worst, &small, 2.0));
            push("1 row of 1 million, by hand", bar, shown, Some(worst.to_floor() <= 2.0));
        }
        for (label, changed) in [("1 %", 1000), ("10 %", 10_000)] {
            let of = |cell: &&Cell| cell.is_bulk() && cell.changed == changed;
            let bulk: Vec<&Cell> = self.cells.iter().filter(of).collect();
            if let Some(worst) = slowest(&bulk, Cell::to_floor) {
                let what = format!("{label} of 100 thousand, by hand");
                let shown = with_count(worst, &bulk, 1.5);
                push(&what, "at most 1.5 x the floor", shown, Some(worst.to_floor() <= 1.5));
            }
            let could: Vec<&Cell> = bulk.into_iter().filter(|c| c.by_hand < c.full).collect();
            if let Some(worst) = slowest(&could, |cell| cell.differential / cell.full) {
                let what = format!("{label} of 100 thousand, FULL");
                let faster = worst.full / worst.differential;
                let shown = format!("{} x as fast ({})", times(faster), worst.shape);
                push(&what, "faster wherever the floor is", shown, Some(faster > 1.0));
            }
        }
        let growths = self.growths();
        let growth = |g: &(&str, &Cell, &Cell)| g.2.differential / g.1.differential;
        if let Some(worst) = growths.iter().max_by(|a, b| growth(a).total_cmp(&growth(b))) {
            let what = format!("100 rows, of {} against {}", worst.2.rows, worst.1.rows);
            let shown = format!("{} x ({})", times(growth(worst)), worst.0);
            push(&what, "grows by at most 1.3 x", shown, Some(growth(worst) <= 1.3));
        }
        for (shape, rows, create, table_as) in &self.creations {
            if *rows == MILLION {
                let ratio = create / table_as;
                let shown = format!("{} x ({} / {} ms)", times(ratio), ms(*create), ms(*table_as));
                let what = format!("create on 1 million: {shape}");
                push(&what, "at most 1.5 x CREATE TABLE AS + key", shown, Some(ratio <= 1.5));
            }
        }
        let small = self.operators.iter().filter(|it| it.rows == MILLION && it.changed == 1);
        if let Some(worst) = small.max_by(|a, b| a.differential.total_cmp(&b.differential)) {
            let shown = format!("{} ms ({})", ms(worst.differential), worst.name);
            let what = "1 row of 1 million, slowest operator";
            push(what, "at most 5 ms", shown, Some(worst.differential <= 5.0));
        }
        for m in &self.measures {
            push(&m.what, &m.bar, m.measured.clone(), m.passed);
        }
        table
    }
}

fn verdict(passed: bool) -> &'static str {
    if passed { "PASS" } else { "MISSED" }
}

fn slowest<'a>(cells: &[&'a Cell], cost: impl Fn(&Cell) -> f64) -> Option<&'a Cell> {
    cells.iter().copied().max_by(|a, b| cost(a).total_cmp(&cost(b)))
}

/// The worst ratio to the floor, and how many shapes keep within `limit`.
fn with_count(worst: &Cell, cells: &[&Cell], limit: f64) -> String {
    let kept = cells.iter().filter(|cell| cell.to_floor() <= limit).count();
    format!("{} x ({}); {kept} of {} shapes", times(worst.to_floor()), worst.shape, cells.len())
}

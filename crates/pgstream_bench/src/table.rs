//! Tables as text: aligned for a terminal, or as Markdown.

/// Rows of cells under headings. Cells that look like numbers are aligned right.
#[derive(Debug, Default)]
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &[&str]) -> Table {
        Table { headings: headings.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new() }
    }

    pub fn push(&mut self, row: Vec<String>) {
        assert_eq!(row.len(), self.headings.len(), "a cell for each heading");
        self.rows.push(row);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Columns padded with spaces, a rule below the headings.
    pub fn plain(&self) -> String {
        let rule = self.widths().iter().map(|w| "-".repeat(*w)).collect();
        let lines = [self.headings.clone(), rule].into_iter().chain(self.rows.iter().cloned());
        lines.map(|row| self.pad(&row).join("  ").trim_end().to_owned() + "\n").collect()
    }

    /// The same as Markdown.
    pub fn markdown(&self) -> String {
        let rule = (0..self.headings.len())
            .map(|i| if self.is_numeric(i) { "---:".to_owned() } else { "---".to_owned() })
            .collect();
        let lines = [self.headings.clone(), rule].into_iter().chain(self.rows.iter().cloned());
        lines.map(|row| format!("| {} |\n", row.join(" | "))).collect()
    }

    fn widths(&self) -> Vec<usize> {
        (0..self.headings.len())
            .map(|i| {
                let cells = self.rows.iter().map(|row| row[i].chars().count());
                cells.chain([self.headings[i].chars().count()]).max().unwrap_or(0)
            })
            .collect()
    }

    fn is_numeric(&self, column: usize) -> bool {
        self.rows.iter().any(|row| row[column].starts_with(|c: char| c.is_ascii_digit()))
            && self.rows.iter().all(|row| {
                let cell = &row[column];
                cell.is_empty() || cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit())
            })
    }

    fn pad(&self, row: &[String]) -> Vec<String> {
        let widths = self.widths();
        let pad = |(i, cell): (usize, &String)| {
            let width = widths[i];
            if self.is_numeric(i) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        };
        row.iter().enumerate().map(pad).collect()
    }
}

/// A time in milliseconds, with the digits that mean something.
pub fn ms(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// A ratio.
pub fn times(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

//! Random tables, and random statements that change them.

use std::fmt::Write as _;

use super::{
    construct::Construct,
    expression::{Column, Scope, bool_expression, expression},
    query::Source,
    random::Random,
    value::Type,
};

/// Stands for the second schema of a case.
pub const OTHER_SCHEMA: &str = "@other@";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    None,
    Primary(Vec<usize>),
    Unique(Vec<usize>),
}

/// A last column that nobody writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Computed {
    Stored,
    Virtual,
    Identity,
}

#[derive(Clone, Debug)]
pub struct Table {
    /// Without schema.
    pub name: String,
    /// Whether it is in the second schema.
    pub is_elsewhere: bool,
    pub columns: Vec<(String, Type)>,
    /// With its name, type and expression.
    pub computed: Option<(Computed, String, Type, String)>,
    pub key: Key,
    /// The column of PARTITION BY HASH; the partitions are `<name>_p0` to `_p2`.
    pub partition_by: Option<usize>,
    /// Whether `<name>_c` inherits from it.
    pub has_child: bool,
    /// The columns of an index: a key, and what is looked for in its order.
    pub index: Option<[usize; 2]>,
    /// The first rows.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn random(number: usize, random: &mut Random) -> Self {
        let mut columns: Vec<(String, Type)> = Vec::new();
        while columns.len() < 2 || (columns.len() < 5 && random.chance(60)) {
            let (name, kind) = random_column(random);
            if columns.iter().all(|(other, _)| *other != name) {
                columns.push((name, kind));
            }
        }
        let candidates: Vec<usize> =
            (0..columns.len()).filter(|&at| columns[at].1.may_be_key()).collect();
        let key = if candidates.is_empty() {
            Key::None
        } else {
            let mut key = vec![*random.pick(&candidates)];
            let second = *random.pick(&candidates);
            if second != key[0] && random.chance(40) {
                key.push(second);
            }
            match random.weighted(&[45, 15, 40]) {
                0 => Key::Primary(key),
                1 => Key::Unique(key),
                _ => Key::None,
            }
        };
        let partition_by = random.chance(10).then(|| match &key {
            Key::Primary(columns) | Key::Unique(columns) => columns[0],
            Key::None => random.below(columns.len()),
        });
        let is_hashable = |kind: Type| !matches!(kind, Type::Jsonb | Type::Of(_));
        let partition_by = partition_by.filter(|&at| is_hashable(columns[at].1));
        // The child has no key.
        let has_child = partition_by.is_none() && key == Key::None && random.chance(20);
        let name = match random.below(8) {
            0 => format!("\"T {number}\""),
            1 => format!("\"tä{number}\""),
            2 => format!("\"{}{number}\"", "t".repeat(59)),
            _ => format!("t{number}"),
        };
        let is_elsewhere = random.chance(15);
        let computed = random.chance(15).then(|| computed_column(&columns, random)).flatten();
        // A child does not inherit it, and would want values.
        let computed = computed.filter(|it| !has_child || it.0 != Computed::Identity);
        // Of types with an order.
        let ordered: Vec<usize> =
            (0..columns.len()).filter(|&at| columns[at].1.has_order()).collect();
        let index = (!ordered.is_empty() && random.chance(40))
            .then(|| [*random.pick(&ordered), *random.pick(&ordered)]);
        let rows = Vec::new();
        let mut table = Self {
            name,
            is_elsewhere,
            columns,
            computed,
            key,
            partition_by,
            has_child,
            index,
            rows,
        };
        for _ in 0..random.between(0, 10) {
            let row = table.row(random);
            table.rows.push(row);
        }
        table
    }

    pub fn key_columns(&self) -> &[usize] {
        match &self.key {
            Key::None => &[],
            Key::Primary(columns) | Key::Unique(columns) => columns,
        }
    }

    fn is_not_null(&self, column: usize) -> bool {
        matches!(&self.key, Key::Primary(columns) if columns.contains(&column))
    }

    fn value(&self, column: usize, random: &mut Random) -> String {
        let kind = self.columns[column].1;
        if self.key_columns().contains(&column) {
            if !self.is_not_null(column) && random.chance(20) {
                return "NULL".to_owned();
            }
            return kind.key_value(random);
        }
        kind.value(true, random)
    }

    fn row(&self, random: &mut Random) -> Vec<String> {
        (0..self.columns.len()).map(|column| self.value(column, random)).collect()
    }

    pub fn key_list(&self) -> String {
        let names: Vec<_> =
            self.key_columns().iter().map(|&at| self.columns[at].0.as_str()).collect();
        names.join(", ")
    }

    /// As FROM names it.
    pub fn qualified(&self) -> String {
        self.derived("")
    }

    /// The qualified name of a partition or child.
    pub fn derived(&self, suffix: &str) -> String {
        self.in_its_schema(&self.bare(suffix))
    }

    /// The same without schema.
    pub fn bare(&self, suffix: &str) -> String {
        match self.name.strip_suffix('"') {
            Some(name) => format!("{name}{suffix}\""),
            None => format!("{}{suffix}", self.name),
        }
    }

    /// The name of something beside the table.
    pub fn in_its_schema(&self, name: &str) -> String {
        if self.is_elsewhere { format!("{OTHER_SCHEMA}.{name}") } else { name.to_owned() }
    }

    /// The columns that are written.
    pub fn column_list(&self) -> String {
        let names: Vec<_> = self.columns.iter().map(|it| it.0.as_str()).collect();
        names.join(", ")
    }

    /// The other columns than those of the key.
    pub fn without_key(&self) -> String {
        let is_other = |at: &usize| !self.key_columns().contains(at);
        let others = (0..self.columns.len()).filter(is_other);
        let names: Vec<_> = others.map(|at| self.columns[at].0.as_str()).collect();
        names.join(", ")
    }

    /// What must be there before it is made.
    pub fn needs(&self) -> Vec<&'static str> {
        let needs = |kind: &Type| match kind {
            Type::Of(simple) => simple.needs,
            _ => &[],
        };
        self.columns.iter().flat_map(|it| needs(&it.1)).copied().collect()
    }

    pub fn create(&self) -> Vec<String> {
        let table = self.qualified();
        let mut sql = format!("CREATE TABLE {table} (");
        let columns = self.columns.iter();
        let mut columns: Vec<_> =
            columns.map(|(name, kind)| format!("{name} {}", kind.column_sql())).collect();
        columns.extend(self.computed.iter().map(|(computed, name, kind, expression)| {
            let kind = kind.column_sql();
            match computed {
                Computed::Stored => {
                    format!("{name} {kind} GENERATED ALWAYS AS ({expression}) STORED")
                }
                Computed::Virtual => {
                    format!("{name} {kind} GENERATED ALWAYS AS ({expression}) VIRTUAL")
                }
                Computed::Identity => format!("{name} {kind} GENERATED BY DEFAULT AS IDENTITY"),
            }
        }));
        sql.push_str(&columns.join(", "));
        match &self.key {
            Key::None => {}
            Key::Primary(_) => {
                write!(sql, ", PRIMARY KEY ({})", self.key_list()).expect("a string")
            }
            Key::Unique(_) => write!(sql, ", UNIQUE ({})", self.key_list()).expect("a string"),
        }
        sql.push(')');
        let mut statements = Vec::new();
        if let Some(column) = self.partition_by {
            write!(sql, " PARTITION BY HASH ({})", self.columns[column].0).expect("a string");
            statements.push(sql);
            for part in 0..3 {
                statements.push(format!(
                    "CREATE TABLE {} PARTITION OF {table} FOR VALUES WITH (MODULUS 3, REMAINDER {part})",
                    self.derived(&format!("_p{part}"))
                ));
            }
        } else {
            statements.push(sql);
        }
        if self.has_child {
            statements.push(format!("CREATE TABLE {} () INHERITS ({table})", self.derived("_c")));
        }
        if !self.rows.is_empty() {
            let rows: Vec<_> =
                self.rows.iter().map(|row| format!("({})", row.join(", "))).collect();
            let conflict = if self.key == Key::None { "" } else { " ON CONFLICT DO NOTHING" };
            statements.push(format!("INSERT INTO {table} VALUES {}{conflict}", rows.join(", ")));
        }
        if let Some(index) = self.index {
            let [key, by] = index.map(|it| self.columns[it].0.as_str());
            statements.push(format!("CREATE INDEX ON {table} ({key}, {by})"));
            statements.push(format!("CREATE INDEX ON {table} ({by})"));
        }
        if self.has_child && !self.rows.is_empty() {
            let columns = self.column_list();
            let child = self.derived("_c");
            statements.push(format!(
                "INSERT INTO {child} ({columns}) SELECT {columns} FROM ONLY {table} LIMIT 2"
            ));
        }
        statements
    }

    /// What FROM can name.
    pub fn sources(&self) -> Vec<Source> {
        let computed = self.computed.iter().map(|(_, name, kind, _)| (name.clone(), *kind));
        let columns: Vec<_> = self.columns.iter().cloned().chain(computed).collect();
        let source = |name: String, constructs: &[Construct]| Source {
            name,
            columns: columns.clone(),
            is_table: true,
            constructs: constructs.iter().copied().collect(),
        };
        if self.has_child {
            let parent = source(self.qualified(), &[Construct::Inheritance]);
            let mut all = vec![parent; 6];
            all.push(source(format!("ONLY {}", self.qualified()), &[]));
            return all;
        }
        let is_partitioned = self.partition_by.is_some();
        let constructs = if is_partitioned { &[Construct::Partitioned][..] } else { &[] };
        vec![source(self.qualified(), constructs)]
    }

    pub fn is_mentioned_in(&self, sql: &str) -> bool {
        let table = self.qualified();
        sql.contains(&format!(" {table} "))
            || sql.contains(&format!(" {table}."))
            || sql.contains(&format!(" {}", self.derived("_p").trim_end_matches('"')))
            || sql.contains(&format!(" {}", self.derived("_c")))
            || sql.ends_with(&format!(" {table}"))
    }

    /// The columns that expressions may name.
    pub fn scope(&self) -> Scope {
        Scope(
            self.columns
                .iter()
                .map(|(name, kind)| Column { sql: format!("{}.{name}", self.name), kind: *kind })
                .collect(),
        )
    }

    /// One statement that changes the table. It may fail with a violation of a key.
    pub fn change(&self, random: &mut Random) -> String {
        let kind = random.weighted(&[28, 6, 26, 8, 16, 5, 3, 6, 4, 2]);
        self.change_of(kind, random)
    }

    /// A change that does not depend on where rows are stored.
    pub fn determined_change(&self, random: &mut Random) -> String {
        let kind = random.weighted(&[28, 0, 26, 8, 16, 0, 3, 6, 4, 1]);
        self.change_of(kind, random)
    }

    fn change_of(&self, kind: usize, random: &mut Random) -> String {
        match kind {
            0 => self.insert(random),
            1 => self.insert_from_itself(random),
            2 => self.update(random),
            3 => self.update_key(random),
            4 => format!("DELETE FROM {} WHERE {}", self.qualified(), self.condition(random)),
            5 if self.partition_by.is_none() => format!(
                "DELETE FROM {0} WHERE ctid = (SELECT min(ctid) FROM {0} WHERE {1})",
                self.qualified(),
                self.condition(random)
            ),
            5 => self.change_partition(random),
            6 => format!("DELETE FROM {}", self.qualified()),
            7 => format!(
                "WITH gone AS (DELETE FROM {0} WHERE {1} RETURNING *) INSERT INTO {0} ({2}) SELECT {2} FROM gone",
                self.qualified(),
                self.condition(random),
                self.column_list()
            ),
            8 => self.merge(random),
            _ => format!("TRUNCATE {}", self.qualified()),
        }
    }

    fn condition(&self, random: &mut Random) -> String {
        bool_expression(&self.scope(), 1, random)
    }

    fn insert(&self, random: &mut Random) -> String {
        let rows: Vec<_> = (0..random.between(1, 3))
            .map(|_| format!("({})", self.row(random).join(", ")))
            .collect();
        let conflict = match random.below(4) {
            _ if self.key == Key::None => String::new(),
            0 => String::new(),
            1 | 2 => " ON CONFLICT DO NOTHING".to_owned(),
            _ => {
                // ON CONFLICT cannot move a row to another partition.
                let columns: Vec<_> =
                    (0..self.columns.len()).filter(|&at| self.partition_by != Some(at)).collect();
                let column = *random.pick(&columns);
                let name = &self.columns[column].0;
                format!(
                    " ON CONFLICT ({}) DO UPDATE SET {name} = {}",
                    self.key_list(),
                    if random.chance(50) {
                        format!("excluded.{name}")
                    } else {
                        self.value(column, random)
                    }
                )
            }
        };
        let target = match self.partition_by {
            // Directly into a partition: it fits in one of three.
            Some(_) if random.chance(10) => self.derived(&format!("_p{}", random.below(3))),
            None if self.has_child && random.chance(45) => self.derived("_c"),
            _ => self.qualified(),
        };
        format!("INSERT INTO {target} VALUES {}{conflict}", rows.join(", "))
    }

    fn insert_from_itself(&self, random: &mut Random) -> String {
        let items: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, (name, _))| {
                if self.key_columns().contains(&at) || random.chance(20) {
                    self.value(at, random)
                } else {
                    name.clone()
                }
            })
            .collect();
        let conflict = if self.key == Key::None { "" } else { " ON CONFLICT DO NOTHING" };
        format!(
            "INSERT INTO {0} ({3}) SELECT {1} FROM {0} WHERE {2} LIMIT 3{conflict}",
            self.qualified(),
            items.join(", "),
            self.condition(random),
            self.column_list()
        )
    }

    fn update(&self, random: &mut Random) -> String {
        let column = random.below(self.columns.len());
        let (name, kind) = &self.columns[column];
        let value = match random.below(4) {
            0 => name.clone(), // nothing changes
            1 if !self.key_columns().contains(&column) => {
                expression(&self.scope(), *kind, 1, random)
            }
            _ => self.value(column, random),
        };
        let value = if *kind == Type::Varchar { format!("left({value}, 6)") } else { value };
        let value = if *kind == Type::Char { format!("({value})::char(4)") } else { value };
        let target = match self.partition_by {
            Some(part) if part != column && random.chance(30) => {
                format!("{} AS {}", self.derived(&format!("_p{}", random.below(3))), self.name)
            }
            None if self.has_child && random.chance(20) => {
                format!("{} AS {}", self.derived("_c"), self.name)
            }
            _ => self.qualified(),
        };
        format!("UPDATE {target} SET {name} = {value} WHERE {}", self.condition(random))
    }

    fn update_key(&self, random: &mut Random) -> String {
        let column = match self.key_columns() {
            [] => random.below(self.columns.len()),
            key => *random.pick(key),
        };
        format!(
            "UPDATE {0} SET {1} = {2} WHERE {3}",
            self.qualified(),
            self.columns[column].0,
            self.value(column, random),
            self.condition(random)
        )
    }

    fn change_partition(&self, random: &mut Random) -> String {
        let part = self.derived(&format!("_p{}", random.below(3)));
        format!("DELETE FROM {part} AS {} WHERE {}", self.name, self.condition(random))
    }

    fn merge(&self, random: &mut Random) -> String {
        let column = random.below(self.columns.len());
        let (name, kind) = &self.columns[column];
        if !kind.has_order() {
            return self.update(random);
        }
        let update = random.below(self.columns.len());
        format!(
            "MERGE INTO {target_table} USING (SELECT {value} AS v) AS s ON {table}.{name} = s.v
  WHEN MATCHED AND {condition} THEN DELETE
  WHEN MATCHED THEN UPDATE SET {target} = {new}
  WHEN NOT MATCHED THEN INSERT ({columns}) VALUES ({row})",
            columns = self.column_list(),
            target_table = self.qualified(),
            table = self.name,
            value = self.columns[column].1.literal(random),
            condition = self.condition(random),
            target = self.columns[update].0,
            new = self.value(update, random),
            row = self.row(random).join(", "),
        )
    }
}

/// Names that are the engine's own, or that need care. Columns of one name have one type.
const NAMES: &[(&str, Type)] = &[
    ("w", Type::Int),
    ("n", Type::BigInt),
    ("k0", Type::Text),
    ("rid", Type::BigInt),
    ("c0", Type::Int),
    ("c1", Type::Text),
    ("v0", Type::Numeric),
    ("o0", Type::Int),
    ("t1", Type::Int),
    ("g", Type::Text),
    ("s", Type::Int),
    ("d", Type::Date),
    ("ordinal", Type::BigInt),
    ("e0", Type::Numeric),
    ("__pgs_row_id", Type::BigInt),
    ("__pgs_count", Type::Int),
    ("__pgs_keys", Type::Text),
    ("\"select\"", Type::Int),
    ("\"Mixed Case\"", Type::Text),
    ("\"quo\"\"te\"", Type::Int),
    ("\"a.b\"", Type::Int),
    ("\"#1\"", Type::Int),
    ("\"$1\"", Type::Text),
    ("\"CTID\"", Type::Int),
    ("\"naïve ☃\"", Type::Bool),
    ("\"123456789_123456789_123456789_123456789_123456789_123456789_123\"", Type::Int),
    ("\"123456789_123456789_123456789_123456789_123456789_123456789_124\"", Type::Int),
    ("new_i1", Type::Int),
    ("xid", Type::Int),
    ("action", Type::Text),
    ("lsn", Type::Int),
];

fn random_column(random: &mut Random) -> (String, Type) {
    if random.chance(12) {
        let (name, kind) = *random.pick(NAMES);
        return (name.to_owned(), kind);
    }
    let kind = Type::random(random);
    (format!("{}{}", kind.prefix(), random.between(1, 2)), kind)
}

fn computed_column(
    columns: &[(String, Type)],
    random: &mut Random,
) -> Option<(Computed, String, Type, String)> {
    let computed = *random.pick(&[Computed::Stored, Computed::Virtual, Computed::Identity]);
    let fit = |kind: &Type| matches!(kind, Type::Int | Type::Text | Type::Bool | Type::Numeric);
    let (name, kind) = columns.iter().find(|it| fit(&it.1))?;
    Some(match (computed, kind) {
        (Computed::Identity, _) => (computed, "gi".to_owned(), Type::BigInt, String::new()),
        (_, Type::Int) => (computed, "gn".to_owned(), Type::Int, format!("{name} % 3")),
        (_, Type::Text) => (computed, "gx".to_owned(), Type::Text, format!("left({name}, 1)")),
        (_, Type::Bool) => (computed, "gb".to_owned(), Type::Bool, format!("{name} IS NOT TRUE")),
        _ => (computed, "gu".to_owned(), Type::Numeric, format!("coalesce({name}, 0)")),
    })
}

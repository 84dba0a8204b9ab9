//! Random tables, and random statements that change them.

use std::fmt::Write as _;

use super::{
    construct::Construct,
    expression::{Column, Scope, bool_expression, expression},
    query::Source,
    random::Random,
    value::{COLUMN_TYPES, Type},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    None,
    Primary(Vec<usize>),
    Unique(Vec<usize>),
}

#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    pub columns: Vec<(String, Type)>,
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
            let kind = *random.pick(COLUMN_TYPES);
            let name = format!("{}{}", kind.prefix(), random.between(1, 2));
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
        let partition_by = partition_by.filter(|&at| columns[at].1 != Type::Jsonb);
        // The child has no key.
        let has_child = partition_by.is_none() && key == Key::None && random.chance(20);
        let name = format!("t{number}");
        let index =
            random.chance(40).then(|| [random.below(columns.len()), random.below(columns.len())]);
        let rows = Vec::new();
        let mut table = Self { name, columns, key, partition_by, has_child, index, rows };
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

    fn key_list(&self) -> String {
        let names: Vec<_> =
            self.key_columns().iter().map(|&at| self.columns[at].0.as_str()).collect();
        names.join(", ")
    }

    pub fn create(&self) -> Vec<String> {
        let mut sql = format!("CREATE TABLE {} (", self.name);
        let columns: Vec<_> =
            self.columns.iter().map(|(name, kind)| format!("{name} {}", kind.sql())).collect();
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
                    "CREATE TABLE {0}_p{part} PARTITION OF {0} FOR VALUES WITH (MODULUS 3, REMAINDER {part})",
                    self.name
                ));
            }
        } else {
            statements.push(sql);
        }
        if self.has_child {
            statements.push(format!("CREATE TABLE {0}_c () INHERITS ({0})", self.name));
        }
        if !self.rows.is_empty() {
            let rows: Vec<_> =
                self.rows.iter().map(|row| format!("({})", row.join(", "))).collect();
            let conflict = if self.key == Key::None { "" } else { " ON CONFLICT DO NOTHING" };
            statements.push(format!(
                "INSERT INTO {} VALUES {}{conflict}",
                self.name,
                rows.join(", ")
            ));
        }
        if let Some(index) = self.index {
            let [key, by] = index.map(|it| self.columns[it].0.as_str());
            statements.push(format!("CREATE INDEX ON {} ({key}, {by})", self.name));
            statements.push(format!("CREATE INDEX ON {} ({by})", self.name));
        }
        if self.has_child && !self.rows.is_empty() {
            let copy = "INSERT INTO {0}_c SELECT * FROM ONLY {0} LIMIT 2";
            statements.push(copy.replace("{0}", &self.name));
        }
        statements
    }

    /// What FROM can name.
    pub fn sources(&self) -> Vec<Source> {
        let source = |name: String, constructs: &[Construct]| Source {
            name,
            columns: self.columns.clone(),
            is_table: true,
            constructs: constructs.iter().copied().collect(),
        };
        if self.has_child {
            let parent = source(self.name.clone(), &[Construct::Inheritance]);
            let mut all = vec![parent; 6];
            all.push(source(format!("ONLY {}", self.name), &[]));
            return all;
        }
        let is_partitioned = self.partition_by.is_some();
        let constructs = if is_partitioned { &[Construct::Partitioned][..] } else { &[] };
        vec![source(self.name.clone(), constructs)]
    }

    pub fn is_mentioned_in(&self, sql: &str) -> bool {
        let table = &self.name;
        sql.contains(&format!(" {table} "))
            || sql.contains(&format!(" {table}."))
            || sql.contains(&format!(" {table}_p"))
            || sql.contains(&format!(" {table}_c"))
            || sql.ends_with(&format!(" {table}"))
    }

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
            4 => format!("DELETE FROM {} WHERE {}", self.name, self.condition(random)),
            5 if self.partition_by.is_none() => format!(
                "DELETE FROM {0} WHERE ctid = (SELECT min(ctid) FROM {0} WHERE {1})",
                self.name,
                self.condition(random)
            ),
            5 => self.change_partition(random),
            6 => format!("DELETE FROM {}", self.name),
            7 => format!(
                "WITH gone AS (DELETE FROM {0} WHERE {1} RETURNING *) INSERT INTO {0} SELECT * FROM gone",
                self.name,
                self.condition(random)
            ),
            8 => self.merge(random),
            _ => format!("TRUNCATE {}", self.name),
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
            Some(_) if random.chance(10) => format!("{}_p{}", self.name, random.below(3)),
            None if self.has_child && random.chance(45) => format!("{}_c", self.name),
            _ => self.name.clone(),
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
            "INSERT INTO {0} SELECT {1} FROM {0} WHERE {2} LIMIT 3{conflict}",
            self.name,
            items.join(", "),
            self.condition(random)
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
                format!("{}_p{} AS {}", self.name, random.below(3), self.name)
            }
            None if self.has_child && random.chance(20) => format!("{0}_c AS {0}", self.name),
            _ => self.name.clone(),
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
            self.name,
            self.columns[column].0,
            self.value(column, random),
            self.condition(random)
        )
    }

    fn change_partition(&self, random: &mut Random) -> String {
        let part = random.below(3);
        format!("DELETE FROM {0}_p{part} AS {0} WHERE {1}", self.name, self.condition(random))
    }

    fn merge(&self, random: &mut Random) -> String {
        let column = random.below(self.columns.len());
        let (name, kind) = &self.columns[column];
        if *kind == Type::Jsonb {
            return self.update(random);
        }
        let update = random.below(self.columns.len());
        format!(
            "MERGE INTO {table} USING (SELECT {value} AS v) AS s ON {table}.{name} = s.v
  WHEN MATCHED AND {condition} THEN DELETE
  WHEN MATCHED THEN UPDATE SET {target} = {new}
  WHEN NOT MATCHED THEN INSERT VALUES ({row})",
            table = self.name,
            value = self.columns[column].1.literal(random),
            condition = self.condition(random),
            target = self.columns[update].0,
            new = self.value(update, random),
            row = self.row(random).join(", "),
        )
    }
}

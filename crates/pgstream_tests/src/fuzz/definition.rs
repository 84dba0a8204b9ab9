//! Random changes of definition that leave the texts of the queries in force, and the settings of
//! others who refresh.

use super::{
    case::View,
    random::Random,
    schema::{Computed, Key, Table},
    security::Security,
};

/// What a session may have set that refreshes a stream table of others. Its query keeps the settings
/// under which it was created.
pub const FOREIGN: [&str; 12] = [
    "datestyle = 'German, DMY'",
    "datestyle = 'SQL, MDY'",
    "intervalstyle = 'iso_8601'",
    "timezone = 'Asia/Kolkata'",
    "bytea_output = 'escape'",
    "extra_float_digits = -6",
    "array_nulls = off",
    "transform_null_equals = on",
    "standard_conforming_strings = off",
    "quote_all_identifiers = on",
    "default_text_search_config = 'pg_catalog.german'",
    "xmloption = 'document'",
];

/// One or more statements that follow one another.
pub fn change(
    tables: &[Table],
    views: &[View],
    security: Option<&Security>,
    random: &mut Random,
) -> Vec<String> {
    if let Some(view) = views.first()
        && random.chance(15)
    {
        return vec![replaced(view, random)];
    }
    let table = random.pick(tables);
    let name = table.qualified();
    if security.is_some() && random.chance(30) {
        let what = random.pick(&["ENABLE", "DISABLE", "FORCE", "NO FORCE"]);
        return vec![format!("ALTER TABLE {name} {what} ROW LEVEL SECURITY")];
    }
    if random.chance(50) {
        if table.partition_by.is_some() {
            let part = random.below(3);
            return vec![detach(table, part), attach(table, part)];
        }
        if table.has_child {
            let child = table.derived("_c");
            return match random.below(3) {
                0 => vec![
                    format!("ALTER TABLE {child} NO INHERIT {name}"),
                    format!("ALTER TABLE {child} INHERIT {name}"),
                ],
                1 => {
                    let other = table.derived("_d");
                    let columns = table.column_list();
                    vec![
                        format!("CREATE TABLE {other} () INHERITS ({name})"),
                        format!(
                            "INSERT INTO {other} ({columns}) SELECT {columns} FROM ONLY {name} LIMIT 2"
                        ),
                        format!("DROP TABLE {other}"),
                    ]
                }
                _ => vec![format!(
                    "ALTER TABLE {child} RENAME TO pgs_x; ALTER TABLE {} RENAME TO {}",
                    table.in_its_schema("pgs_x"),
                    table.bare("_c")
                )],
            };
        }
    }
    vec![of_table(table, &name, random)]
}

fn of_table(table: &Table, name: &str, random: &mut Random) -> String {
    let column = random.below(table.columns.len());
    let (column, kind) = (&table.columns[column].0, table.columns[column].1);
    let ty = kind.column_sql().split(" STORAGE").next().expect("a type");
    let moved = table.in_its_schema("pgs_x");
    match random.below(9) {
        0 => format!("ALTER TABLE {name} RENAME TO pgs_x; ALTER TABLE {moved} RENAME TO {}", table.bare("")),
        1 => format!(
            "ALTER TABLE {name} RENAME {column} TO pgs_x; ALTER TABLE {name} RENAME pgs_x TO {column}"
        ),
        // Rows are written anew, each where it was or elsewhere.
        2 => format!("ALTER TABLE {name} ALTER {column} TYPE {ty} USING {column}"),
        3 if table.key_columns().is_empty() && table.partition_by.is_none() => {
            let value = kind.value(true, random);
            format!("ALTER TABLE {name} ALTER {column} TYPE {ty} USING {value}")
        }
        4 => format!(
            "ALTER TABLE {name} ADD COLUMN pgs_x int DEFAULT 7; ALTER TABLE {name} DROP COLUMN pgs_x"
        ),
        5 => match &table.computed {
            Some((Computed::Stored | Computed::Virtual, generated, kind, _)) => format!(
                "ALTER TABLE {name} ALTER {generated} SET EXPRESSION AS ({})",
                kind.value(true, random)
            ),
            _ if kind.has_order() => format!("CREATE INDEX ON {name} ({column})"),
            _ => format!("COMMENT ON COLUMN {name}.{column} IS 'x'"),
        },
        6 => match &table.key {
            Key::Primary(_) => format!(
                "DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE %s DROP CONSTRAINT %I, ADD PRIMARY KEY (%s)', conrelid::regclass, conname, $k${}$k$)
                   FROM pg_constraint WHERE conrelid = $k${name}$k$::regclass AND contype = 'p'); END $$",
                table.key_list()
            ),
            _ => format!("ALTER TABLE {name} ALTER {column} SET STATISTICS 5; ANALYZE {name}"),
        },
        7 => format!("ALTER TABLE {name} SET UNLOGGED; ALTER TABLE {name} SET LOGGED"),
        _ => format!("ALTER TABLE {name} REPLICA IDENTITY {}", random.pick(&["FULL", "DEFAULT", "NOTHING"])),
    }
}

fn detach(table: &Table, part: usize) -> String {
    let part = table.derived(&format!("_p{part}"));
    format!("ALTER TABLE {} DETACH PARTITION {part}", table.qualified())
}

fn attach(table: &Table, part: usize) -> String {
    format!(
        "ALTER TABLE {} ATTACH PARTITION {} FOR VALUES WITH (MODULUS 3, REMAINDER {part})",
        table.qualified(),
        table.derived(&format!("_p{part}"))
    )
}

fn replaced(view: &View, random: &mut Random) -> String {
    let query = &view.query;
    let otherwise = match random.below(3) {
        0 => format!("({query}) UNION ALL ({query})"),
        1 => format!("SELECT * FROM ({query}) AS pgs_v WHERE false"),
        _ => query.to_string(),
    };
    format!("CREATE OR REPLACE VIEW {} AS {otherwise}", view.name)
}

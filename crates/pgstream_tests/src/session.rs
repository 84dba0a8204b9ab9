//! A connection, with the few ways in which tests use one.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use postgres::{Client, Config, NoTls, SimpleQueryMessage, fallible_iterator::FallibleIterator};

/// An error that the server reported, or the loss of the connection (code `08006`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError {
    pub code: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        for (label, text) in [("DETAIL", &self.detail), ("HINT", &self.hint)] {
            if !text.is_empty() {
                write!(f, "\n{label}: {text}")?;
            }
        }
        Ok(())
    }
}

impl From<postgres::Error> for SqlError {
    fn from(error: postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => Self {
                code: db.code().code().to_owned(),
                message: db.message().to_owned(),
                detail: db.detail().unwrap_or_default().to_owned(),
                hint: db.hint().unwrap_or_default().to_owned(),
            },
            None => Self {
                code: "08006".to_owned(),
                message: error.to_string(),
                detail: String::new(),
                hint: String::new(),
            },
        }
    }
}

/// A connection whose statements are texts and whose results are texts.
pub struct Session {
    client: Client,
    notices: Arc<Mutex<Vec<String>>>,
}

impl Session {
    pub fn connect(config: &Config) -> Result<Self, SqlError> {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&notices);
        let client = config
            .clone()
            .notice_callback(move |notice| {
                sink.lock().expect("no panic while the lock is held").push(format!(
                    "{}: {}",
                    notice.severity(),
                    notice.message()
                ));
            })
            .connect(NoTls)?;
        Ok(Self { client, notices })
    }

    /// Runs statements; one text with several of them is one transaction.
    pub fn try_run(&mut self, sql: &str) -> Result<(), SqlError> {
        self.client.batch_execute(sql).map_err(SqlError::from)
    }

    #[track_caller]
    pub fn run(&mut self, sql: &str) {
        if let Err(error) = self.try_run(sql) {
            panic!("{sql}\n{error}");
        }
    }

    /// The error of a statement that must fail.
    #[track_caller]
    pub fn error(&mut self, sql: &str) -> SqlError {
        match self.try_run(sql) {
            Ok(()) => panic!("expected an error: {sql}"),
            Err(error) => error,
        }
    }

    /// The rows of a query, each with its columns separated by `|`, NULL as `NULL`.
    pub fn try_rows(&mut self, sql: &str) -> Result<Vec<String>, SqlError> {
        let messages = self.client.simple_query(sql)?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(
                    (0..row.len())
                        .map(|column| row.get(column).unwrap_or("NULL"))
                        .collect::<Vec<_>>()
                        .join("|"),
                ),
                _ => None,
            })
            .collect())
    }

    #[track_caller]
    pub fn rows(&mut self, sql: &str) -> Vec<String> {
        match self.try_rows(sql) {
            Ok(rows) => rows,
            Err(error) => panic!("{sql}\n{error}"),
        }
    }

    /// The one row of a query.
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> String {
        let mut rows = self.rows(sql);
        assert_eq!(rows.len(), 1, "one row expected: {sql}\n{rows:?}");
        rows.remove(0)
    }

    /// Waits for what another process does: until a query returns true.
    #[track_caller]
    pub fn wait_until(&mut self, sql: &str) {
        for _ in 0..600 {
            if self.value(sql) == "t" {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        panic!("it does not come to be: {sql}");
    }

    /// Asks until the answer comes, as a user would who waits for the scheduler.
    #[track_caller]
    pub fn eventually(&mut self, sql: &str, expected: &str) {
        let mut last = String::new();
        for _ in 0..600 {
            last = self.value(sql);
            if last == expected {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        let rest = self.try_rows(
            "SELECT backend_type, wait_event, query FROM pg_stat_activity WHERE backend_type LIKE 'pg_stream%'
             UNION ALL SELECT status, action, pgs_id || ' ' || coalesce(error_message, '') FROM pgstream.pgs_refresh_history",
        );
        panic!("{sql} is still {last}, not {expected}\n{}", rest.unwrap_or_default().join("\n"));
    }

    #[track_caller]
    pub fn refresh(&mut self, stream_table: &str) {
        self.run(&format!("SELECT pgstream.refresh_stream_table('{stream_table}')"));
    }

    /// Creates a stream table that only manual refreshes touch.
    #[track_caller]
    pub fn create(&mut self, name: &str, query: &str) {
        if let Err(error) = self.try_create(name, query) {
            panic!("creating {name} AS {query}\n{error}");
        }
    }

    pub fn try_create(&mut self, name: &str, query: &str) -> Result<(), SqlError> {
        self.try_run(&format!(
            "SELECT pgstream.create_stream_table($pgs_name${name}$pgs_name$, $pgs_query${query}$pgs_query$, '1d', 'DIFFERENTIAL')"
        ))
    }

    /// The backend's process id.
    pub fn pid(&mut self) -> String {
        self.value("SELECT pg_backend_pid()")
    }

    /// The payloads that were sent to this session on `channel`, waiting for the first one if there
    /// is none yet; empty when none comes in ten seconds.
    pub fn notifications(&mut self, channel: &str) -> Vec<String> {
        let mut payloads = Vec::new();
        let mut wait = Duration::from_secs(10);
        loop {
            let mut all = self.client.notifications();
            let next = all.timeout_iter(wait).next().expect("the connection works");
            let Some(notification) = next else { return payloads };
            if notification.channel() == channel {
                payloads.push(notification.payload().to_owned());
                wait = Duration::ZERO;
            }
        }
    }

    /// What the server has said besides results, since the last call.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut *self.notices.lock().expect("no panic while the lock is held"))
    }
}

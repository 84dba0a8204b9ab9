//! Servers: the shared one that the tests find, and private ones to be crashed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use postgres::Config;

use crate::session::{Session, SqlError};

fn environment(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `make test`, or scripts/with_server.sh fast COMMAND")
    })
}

/// Where to connect.
pub struct Server {
    url: String,
    /// Set for a private server: the directory given to `scripts/server.sh`.
    dir: Option<PathBuf>,
}

impl Server {
    /// The server that the whole run shares.
    pub fn shared() -> Self {
        Self { url: environment("PGSTREAM_TEST_URL"), dir: None }
    }

    /// A server of this test's own, durable, with the scheduler on unless `settings` say otherwise.
    pub fn start(settings: &[&str]) -> Self {
        let server = Self::planned();
        let dir = server.dir().to_string_lossy();
        script(&[&["start", &dir, "shared_buffers=32MB"], settings].concat());
        server
    }

    /// A server that has a place, and nothing else yet. For a copy of another one, make the data
    /// directory with [`Server::program`], then call [`Server::start_copy`].
    pub fn planned() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(environment("PGSTREAM_TEST_DIR"))
            .join(format!("own-{}-{number}", std::process::id()));
        let url = format!("host={} port=5432 user=postgres dbname=postgres", dir.display());
        Self { url, dir: Some(dir) }
    }

    /// Starts on a data directory that is a copy of another server's, with more settings.
    pub fn start_copy(&self, settings: &[&str]) {
        let own = format!("unix_socket_directories={}", self.dir().display());
        self.set(&[&[own.as_str()], settings].concat());
        self.start_again();
    }

    /// Adds settings, for the next start.
    pub fn set(&self, settings: &[&str]) {
        let file = self.dir().join("data/postgresql.auto.conf");
        let mut content = fs::read_to_string(&file).expect("the data directory is there");
        for setting in settings {
            let (name, value) = setting.split_once('=').expect("NAME=VALUE");
            content += &format!("{name} = '{value}'\n");
        }
        fs::write(file, content).expect("the data directory is ours");
    }

    /// Where the server listens; a directory in which its user can write.
    pub fn place(&self) -> PathBuf {
        match self.config().get_hosts() {
            [postgres::config::Host::Unix(place)] => place.clone(),
            other => panic!("a server listens on one Unix socket, not on {other:?}"),
        }
    }

    /// Runs one of PostgreSQL's programs as the server's user, in the server's place and connecting
    /// to it unless told otherwise. What it printed to stderr is the error.
    pub fn try_program(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let place = self.place();
        let output = Command::new(environment("PGSTREAM_SERVER_SCRIPT"))
            .args(["run", &place.to_string_lossy(), program])
            .args(arguments)
            .env("PGHOST", &place)
            .env("PGUSER", "postgres")
            .env_remove("PGOPTIONS")
            .output()
            .expect("the server script can be run");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(())
        } else {
            Err(said(&output.stdout) + &said(&output.stderr))
        }
    }

    #[track_caller]
    pub fn program(&self, program: &str, arguments: &[&str]) {
        if let Err(error) = self.try_program(program, arguments) {
            panic!("{program} {arguments:?}\n{error}");
        }
    }

    pub fn config(&self) -> Config {
        self.url.parse().expect("the server's URL is a list of key=value")
    }

    pub fn session(&self, database: &str) -> Session {
        match self.try_session(database) {
            Ok(session) => session,
            Err(error) => panic!("connecting to {database}: {error}"),
        }
    }

    pub fn try_session(&self, database: &str) -> Result<Session, SqlError> {
        Session::connect(self.config().dbname(database))
    }

    fn dir(&self) -> &PathBuf {
        self.dir.as_ref().expect("only a private server is stopped or crashed")
    }

    /// `kill -9` of the postmaster, and waits until all its children are gone.
    pub fn kill(&self) {
        let pid_file = self.dir().join("data/postmaster.pid");
        let content = fs::read_to_string(pid_file).expect("the server runs");
        let postmaster = content.lines().next().expect("the first line is the process id");
        let children = children(postmaster);
        kill_9(postmaster);
        for _ in 0..600 {
            if children.iter().all(|pid| !Path::new("/proc").join(pid).exists()) {
                return;
            }
            thread::park_timeout(Duration::from_millis(50));
        }
        panic!("processes outlive their postmaster: {children:?}");
    }

    /// Starts it again after [`Server::kill`] or [`Server::stop`].
    pub fn start_again(&self) {
        script(&["start", &self.dir().to_string_lossy()]);
    }

    pub fn stop(&self) {
        script(&["stop", &self.dir().to_string_lossy()]);
    }

    /// Lets a stopped server start as a standby of nobody.
    pub fn become_standby(&self) {
        let signal = self.dir().join("data/standby.signal");
        fs::write(signal, "").expect("the data directory is writable");
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        let log = fs::read(self.dir().join("log")).expect("the server has a log");
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            script(&["stop", &dir.to_string_lossy(), "immediate"]);
            // What cannot be removed now goes with the run's directory.
            let _ignored = fs::remove_dir_all(dir);
        }
    }
}

/// `kill -9` of one process of a server, by its id.
pub fn kill_9(pid: &str) {
    let status = Command::new("kill").args(["-9", pid]).status().expect("kill can be run");
    assert!(status.success(), "kill -9 {pid}");
}

/// The processes that the given one has started.
fn children(parent: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("/proc is readable");
    processes
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // "pid (name) state ppid ...", and the name may hold anything.
            let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            after_name.split_whitespace().nth(1) == Some(parent)
        })
        .collect()
}

fn script(arguments: &[&str]) {
    let status = Command::new(environment("PGSTREAM_SERVER_SCRIPT"))
        .args(arguments)
        .status()
        .expect("the server script can be run");
    assert!(status.success(), "server.sh {arguments:?}");
}

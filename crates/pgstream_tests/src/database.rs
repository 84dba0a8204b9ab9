//! A database for one test.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{
    server::Server,
    session::{Session, SqlError},
};

/// A database with the extension, dropped at the end of the test.
///
/// Refreshes never choose FULL for the size of a change, and nothing is scheduled (the shared
/// server has `pg_stream.enabled = off`).
pub struct Database {
    server: Server,
    name: String,
}

impl Database {
    /// A copy of the template on the shared server.
    #[allow(clippy::new_without_default, reason = "it talks to a server, and it can panic")]
    pub fn new() -> Self {
        Self::on(Server::shared())
    }

    /// A database on the given server.
    pub fn on(server: Server) -> Self {
        let mut admin = server.session("postgres");
        let template = ensure_template(&server, &mut admin);
        Self::copy(server, &template)
    }

    /// A database on the given server without the extension, to restore a dump into.
    pub fn empty(server: Server) -> Self {
        Self::copy(server, "template0")
    }

    /// A copy of another database of the server, to which nobody may be connected.
    pub fn copy(server: Server, template: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut admin = server.session("postgres");
        admin.run(&format!("CREATE DATABASE {name} TEMPLATE {template}"));
        admin
            .run(&format!("ALTER DATABASE {name} SET pg_stream.differential_max_change_ratio = 0"));
        admin.run(&format!("ALTER DATABASE {name} SET timezone = 'UTC'"));
        Self { server, name }
    }

    /// One that is there already, as in a copy of a server.
    pub fn existing(server: Server, name: &str) -> Self {
        Self { server, name: name.to_owned() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn session(&self) -> Session {
        self.server.session(&self.name)
    }

    /// Waits until the server accepts connections, after a crash.
    pub fn wait_until_up(&self) {
        drop(self.session_after_crash());
    }

    /// A session as soon as the server accepts one.
    pub fn session_after_crash(&self) -> Session {
        for _ in 0..6000 {
            if let Ok(session) = self.try_session() {
                return session;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(10));
        }
        panic!("the server does not come back");
    }

    pub fn try_session(&self) -> Result<Session, SqlError> {
        self.server.try_session(&self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A failure shows up elsewhere; a panic in drop would hide it.
        if let Ok(mut admin) = self.server.try_session("postgres") {
            let _ignored =
                admin.try_run(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        }
    }
}

/// Makes the template once a server, whoever comes first.
/// Nobody can connect to it, so no worker of ours is ever in the way of copying it.
fn ensure_template(server: &Server, admin: &mut Session) -> String {
    let template = "pgstream_template".to_owned();
    admin.run("SELECT pg_advisory_lock(7077)");
    let exists = format!("SELECT count(*) FROM pg_database WHERE datname = '{template}'");
    if admin.value(&exists) == "0" {
        let building = format!("{template}_building");
        admin.run(&format!("DROP DATABASE IF EXISTS {building} WITH (FORCE)"));
        admin.run(&format!("CREATE DATABASE {building}"));
        server.session(&building).run("CREATE EXTENSION pg_stream");
        admin.run(&format!("ALTER DATABASE {building} ALLOW_CONNECTIONS false"));
        admin.run(&format!(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{building}'"
        ));
        admin.run(&format!("ALTER DATABASE {building} RENAME TO {template}"));
    }
    admin.run("SELECT pg_advisory_unlock(7077)");
    template
}

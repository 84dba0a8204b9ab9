//! Tests of the extension through SQL, on a running server.

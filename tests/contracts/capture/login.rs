//! The stream logs in as the other connections do: by password, with TLS or without.

use outbox_relay::capture::{Capture, CaptureKind};
use outbox_relay::fault::Fault;
use outbox_relay::servers::Postgres;

use super::place::{Place, Reader, insert, sql};
use crate::support::servers::connect;
use crate::support::strict::strict_postgres;
use crate::support::within;

/// With a role `relay` that has a password.
async fn strict(method: &str) -> (Postgres, String) {
    let (postgres, certificate) = strict_postgres(method).await;
    let login = "create role relay login superuser replication password 'pass word'";
    sql(&connect(postgres.url()).await, login).await;
    (postgres, certificate)
}

#[test]
fn by_password_and_tls() {
    within(120, async {
        for method in ["scram-sha-256", "md5", "password"] {
            let (postgres, certificate) = strict(method).await;
            let mut place = Place::on(&postgres, CaptureKind::Wal).await;
            let roots = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(roots.path(), certificate).unwrap();
            let open = place.database.url.clone();
            let verified = format!("sslmode=verify-full&sslrootcert={}", roots.path().display());
            let url = |password: &str, tls: &str| {
                let url = open.replace("postgres@", &format!("relay:{password}@"));
                format!("{url}?{tls}")
            };
            place.database.url = url("pass%20word", &verified);
            let mut reader = Reader::new(&place, place.settings()).await;
            insert(&place.connect().await, "1").await;
            assert_eq!(reader.all().await, [["1"]], "{method}");
            let position = reader.position.clone();
            drop(reader);
            // Encrypted, whoever it is.
            place.database.url = url("pass%20word", "sslmode=prefer");
            let mut capture = place.capture(place.settings());
            assert!(capture.next(&position).await.is_ok(), "{method}");
            for (password, tls, says) in [
                ("wrong", "sslmode=prefer", "refuses the login"),
                ("pass%20word", "sslmode=disable", "refuses the login"),
                ("pass%20word", "sslmode=require", "not available"),
            ] {
                place.database.url = url(password, tls);
                let mut capture = place.capture(place.settings());
                let fault: Fault = capture.next(&position).await.err().unwrap();
                let text = fault.to_string();
                assert!(
                    text.contains(says) && !text.contains("wrong"),
                    "{method} {tls}: {text}"
                );
            }
        }
    });
}

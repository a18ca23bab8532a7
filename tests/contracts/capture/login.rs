//! The stream logs in as the other connections do: by password, with TLS or without.

use outbox_relay::capture::{Capture, CaptureKind};
use outbox_relay::fault::Fault;
use outbox_relay::servers::{Postgres, PostgresVersion};
use tokio_postgres::Client;

use super::place::{Place, Reader, insert, sql};
use crate::support::servers::{connect, own_postgres};
use crate::support::within;

/// Writes a file of the server, readable by it alone. Answers its path.
async fn file(client: &Client, name: &str, text: &str) -> String {
    let folder = client.query_one("show data_directory", &[]).await.unwrap();
    let path = format!("{}/{name}", folder.get::<_, &str>(0));
    let lines: Vec<String> = text.lines().map(|line| format!("('{line}')")).collect();
    let write = format!(
        "copy (select line from (values {}) lines (line)) to program 'cat > {path}; chmod 600 {path}'",
        lines.join(", ")
    );
    sql(client, &write).await;
    path
}

/// A server that wants a password, by `method`, and TLS if there is a certificate; its superuser needs neither by the socket.
async fn strict(method: &str) -> (Postgres, String) {
    let mut postgres = own_postgres(PostgresVersion::V17, &[]).await;
    let client = connect(postgres.url()).await;
    let encryption = if method == "md5" {
        "md5"
    } else {
        "scram-sha-256"
    };
    sql(&client, &format!("set password_encryption = '{encryption}'; create role relay login superuser replication password 'pass word'")).await;
    let certified =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
    let certificate = certified.cert.pem();
    let cert_file = file(&client, "relay.crt", &certificate).await;
    let key_file = file(&client, "relay.key", &certified.signing_key.serialize_pem()).await;
    let hba = format!(
        "hostssl all relay 127.0.0.1/32 {method}\nhostnossl all relay 127.0.0.1/32 reject\nhost all postgres 127.0.0.1/32 trust"
    );
    let hba_file = file(&client, "relay.conf", &hba).await;
    for setting in [
        format!("ssl_cert_file = '{cert_file}'"),
        format!("ssl_key_file = '{key_file}'"),
        "ssl = on".to_owned(),
        format!("hba_file = '{hba_file}'"),
    ] {
        sql(&client, &format!("alter system set {setting}")).await;
    }
    postgres.stop_fast().await.unwrap();
    postgres.start().await.unwrap();
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

//! Servers that demand TLS and a login. The test itself comes in by a plain door, as the administrator.

use outbox_relay::servers::{Kafka, KafkaLogin, Postgres, PostgresVersion};
use tokio_postgres::Client;

use super::servers::{connect, own, own_postgres};

/// A certificate for the loopback address, and its key; both PEM.
fn certified() -> (String, String) {
    let names = vec!["127.0.0.1".into(), "localhost".into()];
    let certified = rcgen::generate_simple_self_signed(names).expect("a certificate");
    (certified.cert.pem(), certified.signing_key.serialize_pem())
}

/// A server that wants a password of all but its superuser, by `method`, and TLS. Answers its certificate too.
pub async fn strict_postgres(method: &str) -> (Postgres, String) {
    let mut postgres = own_postgres(PostgresVersion::V17, &[]).await;
    let client = connect(postgres.url()).await;
    let (certificate, key) = certified();
    let cert_file = file(&client, "relay.crt", &certificate).await;
    let key_file = file(&client, "relay.key", &key).await;
    let hba = format!(
        "host all postgres 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 {method}\nhostnossl all all 127.0.0.1/32 reject"
    );
    let hba_file = file(&client, "relay.conf", &hba).await;
    let encryption = match method {
        "md5" => "md5",
        _ => "scram-sha-256",
    };
    for setting in [
        format!("password_encryption = '{encryption}'"),
        format!("ssl_cert_file = '{cert_file}'"),
        format!("ssl_key_file = '{key_file}'"),
        "ssl = on".to_owned(),
        format!("hba_file = '{hba_file}'"),
    ] {
        let alter = format!("alter system set {setting}");
        client.batch_execute(&alter).await.expect("a setting");
    }
    postgres.stop_fast().await.expect("a stop");
    postgres.start().await.expect("a start");
    (postgres, certificate)
}

/// Writes a file of the server, readable by it alone. Answers its path.
async fn file(client: &Client, name: &str, text: &str) -> String {
    let folder = client.query_one("show data_directory", &[]).await;
    let path = format!("{}/{name}", folder.expect("a folder").get::<_, &str>(0));
    let lines: Vec<String> = text.lines().map(|line| format!("('{line}')")).collect();
    let write = format!(
        "copy (select line from (values {}) lines (line)) to program 'cat > {path}; chmod 600 {path}'",
        lines.join(", ")
    );
    client.batch_execute(&write).await.expect("a file");
    path
}

/// A broker that wants this user's password, and TLS, and lets nobody do what no rule allows. Answers its certificate too.
pub async fn strict_kafka(user: &str, password: &str) -> (Kafka, String) {
    let (certificate, key) = certified();
    let login = KafkaLogin {
        key_and_certificate: format!("{key}{certificate}"),
        user: user.to_owned(),
        password: password.to_owned(),
    };
    let kafka = own().strict_kafka(login).await;
    (kafka.unwrap_or_else(|error| panic!("{error}")), certificate)
}

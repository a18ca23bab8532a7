//! Revokes privileges, in the frames of Kafka's own protocol: the client library has no call for it.

use tokio::net::TcpStream;

use super::proxy::frame;
use super::until;

/// What a privilege is on; the numbers are Kafka's (`ResourceType`).
#[derive(Clone, Copy, Debug)]
pub enum Resource {
    Topic = 2,
    Cluster = 4,
    TransactionalId = 5,
}

/// The requests, each in version 1.
#[derive(Clone, Copy)]
enum Api {
    Describe = 29,
    Create = 30,
    Delete = 31,
}

/// What a privilege lets one do; the numbers are Kafka's (`AclOperation`).
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    All = 2,
    Read = 3,
    Write = 4,
    Create = 5,
    Describe = 8,
    DescribeConfigs = 10,
}

const LITERAL: u8 = 3;
const ANY: u8 = 1;
const DENY: u8 = 2;
const ALLOW: u8 = 3;

/// Nobody may write to it from now on; all else stays allowed.
pub async fn revoke_write(brokers: &str, resource: Resource, name: &str) {
    revoke(brokers, resource, name, Operation::Write).await;
}

/// The same for another operation.
pub async fn revoke(brokers: &str, resource: Resource, name: &str, operation: Operation) {
    for (operation, permission) in [(Operation::All, ALLOW), (operation, DENY)] {
        let mut rule = vec![0, 0, 0, 1];
        rule.extend(on(resource, name));
        rule.extend([string("User:*"), string("*")].concat());
        rule.extend([operation as u8, permission]);
        ask(brokers, Api::Create, &rule).await;
    }
    applied(brokers, resource, name, 1).await;
}

/// This user may do this, where nobody may what no rule allows.
pub async fn allow(
    brokers: &str,
    user: &str,
    resource: Resource,
    name: &str,
    operations: &[Operation],
) {
    for operation in operations {
        let mut rule = vec![0, 0, 0, 1];
        rule.extend(on(resource, name));
        rule.extend([string(&format!("User:{user}")), string("*")].concat());
        rule.extend([*operation as u8, ALLOW]);
        ask(brokers, Api::Create, &rule).await;
    }
    applied(brokers, resource, name, 1).await;
}

/// Everybody may do everything with it again.
pub async fn give_back(brokers: &str, resource: Resource, name: &str) {
    let mut filters = vec![0, 0, 0, 1];
    filters.extend(filter(resource, name));
    ask(brokers, Api::Delete, &filters).await;
    applied(brokers, resource, name, 0).await;
}

/// The broker learns from its controller what was decided.
async fn applied(brokers: &str, resource: Resource, name: &str, resources: u8) {
    until("the broker knows of the change", 20, async || {
        let reply = ask(brokers, Api::Describe, &filter(resource, name)).await;
        // After the error there is its text, which is null, and the resources that have rules.
        reply[12..16] == [0, 0, 0, resources]
    })
    .await;
}

/// All rules about a resource.
fn filter(resource: Resource, name: &str) -> Vec<u8> {
    const NULL: [u8; 2] = [0xff, 0xff];
    let mut filter = on(resource, name);
    filter.extend([NULL, NULL].concat());
    filter.extend([ANY, ANY]);
    filter
}

fn on(resource: Resource, name: &str) -> Vec<u8> {
    let mut on = vec![resource as u8];
    on.extend(string(name));
    on.push(LITERAL);
    on
}

fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a short text");
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

/// The reply, without its length. One that says that it was refused fails the test.
async fn ask(brokers: &str, api: Api, body: &[u8]) -> Vec<u8> {
    const VERSION_AND_CORRELATION: [u8; 6] = [0, 1, 0, 0, 0, 7];
    let head = [
        &[0, api as u8][..],
        &VERSION_AND_CORRELATION,
        &string("test"),
    ]
    .concat();
    let mut broker = TcpStream::connect(brokers).await.expect("a connection");
    let sent = frame::write(&mut broker, &[&head, body].concat()).await;
    sent.expect("a request");
    let reply = frame::read(&mut broker).await.expect("a reply");
    let reply = reply.expect("a reply");
    // After correlation and throttle time; the two that change something answer a list, here of one.
    let error = match api {
        Api::Describe => &reply[8..10],
        Api::Create | Api::Delete => &reply[12..14],
    };
    assert_eq!(error, [0, 0], "the broker refuses");
    reply
}

//! Who signs in to a nats-server: an operator's users, and certificates.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

use super::nats;
use super::process::run;

/// An operator's world: who may do what stands in signed documents.
pub(crate) struct Operator {
    /// For the server.
    pub(crate) config: String,
    /// A credentials file of its user.
    pub(crate) creds: String,
}

impl Operator {
    /// With one account that has JetStream, and a user who may do this.
    pub(crate) fn with_user(permissions: &Value) -> Self {
        let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
        let (system, user) = (KeyPair::new_account(), KeyPair::new_user());
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1,
            "consumer": -1
        });
        let mut bare = unlimited.clone();
        for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
            bare[limit] = 0.into();
        }
        let claims = |kind: &str, more: &Value| {
            let mut claims = more.clone();
            claims["type"] = kind.into();
            claims["version"] = 2.into();
            claims
        };
        let of = |limits: Value| claims("account", &json!({"limits": limits}));
        let operator_jwt = jwt(&operator, &operator, &claims("operator", &json!({})));
        let account_jwt = jwt(&operator, &account, &of(unlimited));
        let system_jwt = jwt(&operator, &system, &of(bare));
        let user_jwt = jwt(&account, &user, &claims("user", permissions));
        let seed = user.seed().expect("a seed");
        let (account, system) = (account.public_key(), system.public_key());
        Self {
            config: format!(
                "operator: {operator_jwt}\nsystem_account: {system}\nresolver: MEMORY\n\
                 resolver_preload: {{ {account}: {account_jwt}, {system}: {system_jwt} }}"
            ),
            creds: format!(
                "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
                 -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
            ),
        }
    }
}

/// A signed document as nats-server reads it (nats-io/jwt, version 2).
fn jwt(issuer: &KeyPair, subject: &KeyPair, claims: &Value) -> String {
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(&json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let body = encode(&json!({
        "jti": "test", "iat": 1, "name": "test", "nats": claims,
        "iss": issuer.public_key(), "sub": subject.public_key()
    }));
    let signed = format!("{header}.{body}");
    let signature = issuer.sign(signed.as_bytes()).expect("signed");
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// Made by the openssl program, as an operator would.
pub(crate) struct Certificates(TempDir);

impl Certificates {
    /// An authority, another one, a server at 127.0.0.1, a client `app@example.org`.
    pub(crate) fn make() -> Self {
        let made = Self(TempDir::new().expect("a temporary directory"));
        for authority in ["ca", "other"] {
            let openssl = "req -x509 -nodes -days 1 -newkey ec -pkeyopt ec_paramgen_curve:P-256";
            let name = format!("/CN={authority}");
            made.openssl(openssl, &["-subj", &name], authority);
        }
        made.signed(
            "server",
            "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth",
        );
        made.signed(
            "client",
            "subjectAltName=email:app@example.org\nextendedKeyUsage=clientAuth",
        );
        made
    }

    fn signed(&self, name: &str, extensions: &str) {
        std::fs::write(self.path("extensions"), extensions).expect("write");
        let request = "req -new -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256";
        let subject = format!("/CN={name}");
        let mut openssl = self.command(request);
        let (key, csr) = (format!("{name}.key"), format!("{name}.csr"));
        openssl.args(["-subj", &subject, "-keyout", &key, "-out", &csr]);
        run(openssl);
        let mut openssl =
            self.command("x509 -req -days 1 -CA ca.crt -CAkey ca.key -CAcreateserial");
        openssl.args(["-in", &csr, "-out", &format!("{name}.crt")]);
        openssl.args(["-extfile", "extensions"]);
        run(openssl);
    }

    fn openssl(&self, arguments: &str, more: &[&str], name: &str) {
        let mut openssl = self.command(arguments);
        let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
        openssl.args(more).args(["-keyout", &key, "-out", &crt]);
        run(openssl);
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("openssl");
        let arguments = arguments.split(' ');
        command.args(arguments).current_dir(self.0.path());
        command
    }

    /// A file: `ca.crt`, `client.key` and so on.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a file made by openssl")
    }

    /// A server that speaks TLS, with more in its `tls` block.
    pub(crate) fn server(&self, more: &str) -> nats::Builder {
        let files = "cert_file: \"{home}/server.crt\", key_file: \"{home}/server.key\"";
        nats::Nats::builder()
            .file("server.crt", self.read("server.crt"))
            .file("server.key", self.read("server.key"))
            .file("ca.crt", self.read("ca.crt"))
            .config(&format!(
                "tls {{ {files}, ca_file: \"{{home}}/ca.crt\" {more} }}"
            ))
    }

    /// What trusts this authority, in `nats`.
    pub(crate) fn tls(&self, ca: &str, more: &str) -> String {
        format!("tls: {{ca: {}{more}}}", self.path(ca).display())
    }

    /// What names the client's certificate, in `tls`.
    pub(crate) fn identity(&self) -> String {
        let (cert, key) = (self.path("client.crt"), self.path("client.key"));
        format!(", cert: {}, key: {}", cert.display(), key.display())
    }
}

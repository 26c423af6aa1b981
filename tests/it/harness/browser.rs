//! A real browser without a display, driven by the DevTools protocol through pipes
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::binaries;
use super::wait::{Wait, until};

/// A browser that starts on a busy machine takes its time.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// It reads commands from file 3 and answers on file 4.
const PIPES: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#;

/// A page in a browser.
pub(crate) struct Browser {
    /// Ends with its pipes, even if nobody is left to kill it.
    _process: Child,
    _home: TempDir,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    last: u64,
    session: Option<String>,
    complaints: Vec<String>,
}

impl Browser {
    /// Opens a page.
    pub(crate) async fn open(url: &str) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let mut process = Command::new("sh")
            .args(["-c", PIPES])
            .arg(binaries::chromium())
            .args(["--headless", "--remote-debugging-pipe", "--disable-gpu"])
            // Tests may run as root, and in containers with little shared memory.
            .args([
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ])
            .args(["--no-first-run", "--disable-background-networking"])
            .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
            .arg(format!("--user-data-dir={}", home.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start sh");
        let mut browser = Self {
            commands: process.stdin.take().expect("a pipe"),
            answers: BufReader::new(process.stdout.take().expect("a pipe")),
            _process: process,
            _home: home,
            last: 0,
            session: None,
            complaints: Vec::new(),
        };
        let page = json!({"url": "about:blank", "width": 1160, "height": 900});
        let target = browser.call("Target.createTarget", page).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser.call("Page.navigate", json!({"url": url})).await;
        browser
    }

    /// The value of an expression in the page.
    pub(crate) async fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", asked).await;
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    /// What stands in the element with this id; "" if there is none yet or it is hidden.
    pub(crate) async fn text(&mut self, id: &str) -> String {
        let expression = format!(
            "(e => e && e.offsetParent !== null ? e.textContent.trim() : '')\
             (document.getElementById('{id}'))"
        );
        let text = self.evaluate(&expression).await;
        text.as_str().expect("a text").to_owned()
    }

    /// Waits until the element's text suits; returns it.
    pub(crate) async fn until_text(&mut self, id: &str, suits: impl Fn(&str) -> bool) -> String {
        until(&format!("#{id} says so"), ANSWER_WITHIN, async || {
            let text = self.text(id).await;
            match suits(&text) {
                true => Wait::Ready(text),
                false => Wait::NotYet(text),
            }
        })
        .await
    }

    /// What the browser refused or a script threw: each is a fault of the page.
    pub(crate) fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Writes pictures, light, dark and narrow, to the directory `OUTJET_SCREENSHOTS`; nothing if
    /// nobody wants them.
    pub(crate) async fn picture(&mut self, name: &str) {
        let Some(directory) = std::env::var_os("OUTJET_SCREENSHOTS") else {
            return;
        };
        for (variant, scheme, width) in [
            ("light", "light", 1160),
            ("dark", "dark", 1160),
            ("narrow", "light", 400),
        ] {
            let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
            let media = json!({"features": features});
            self.call("Emulation.setEmulatedMedia", media).await;
            let size =
                json!({"width": width, "height": 900, "deviceScaleFactor": 1.5, "mobile": false});
            self.call("Emulation.setDeviceMetricsOverride", size).await;
            let whole = json!({"format": "png", "captureBeyondViewport": true});
            let taken = self.call("Page.captureScreenshot", whole).await;
            let png = STANDARD.decode(taken["data"].as_str().expect("a picture"));
            let path = std::path::Path::new(&directory).join(format!("{name}-{variant}.png"));
            std::fs::write(path, png.expect("base64")).expect("write a picture");
        }
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let id = self.last;
        let mut command = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        let command = format!("{command}\0");
        let sent = self.commands.write_all(command.as_bytes()).await;
        sent.unwrap_or_else(|error| panic!("{method}: the browser has ended: {error}"));
        loop {
            let answer = tokio::time::timeout(ANSWER_WITHIN, self.next()).await;
            let mut answer = answer.unwrap_or_else(|_| panic!("no answer to {method}"));
            if answer["id"] == id {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].take();
            }
            self.note(&answer);
        }
    }

    async fn next(&mut self) -> Value {
        let mut answer = Vec::new();
        let read = self.answers.read_until(0, &mut answer).await;
        let read = read.expect("read from the browser");
        assert!(
            read > 0,
            "the browser has ended: `scripts/tools --watchers` fetches one that runs"
        );
        answer.pop();
        serde_json::from_slice(&answer).expect("JSON")
    }

    fn note(&mut self, event: &Value) {
        let entry = &event["params"]["entry"];
        let complained = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => entry["level"] == "error",
            _ => false,
        };
        if complained {
            self.complaints.push(event["params"].to_string());
        }
    }
}

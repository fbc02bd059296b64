//! A headless Chromium that is told what to do over its DevTools protocol.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

/// How long the browser may take to start, and a page to become what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// One browser with one page.
pub(crate) struct Browser {
    process: Child,
    socket: WebSocket<TcpStream>,
    session: Option<String>,
    calls: u64,
    /// Errors on the console, exceptions, and what the browser itself complains of.
    pub(crate) complaints: Vec<String>,
    /// Addresses of everything that was fetched.
    pub(crate) fetched: Vec<String>,
    _folder: tempfile::TempDir,
}

/// Starts a browser. Without one the test is skipped, visibly, unless all tests are required.
pub(crate) fn start(test: &str) -> Option<Browser> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&paths)
        .flat_map(|folder| PROGRAMS.map(|program| folder.join(program)))
        .find(|path| path.is_file());
    let Some(program) = candidates else {
        let required = std::env::var("CONCILIUM_REQUIRE_ALL_TESTS").is_ok_and(|value| value == "1");
        assert!(!required, "{test} needs a browser: install one of {PROGRAMS:?}");
        eprintln!("skipped: {test} needs a browser, and none of {PROGRAMS:?} is in PATH");
        return None;
    };
    Some(Browser::start(&program))
}

/// Where screenshots are left for people to look at.
pub(crate) fn screenshots() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&folder).expect("the folder for temporary files is writable");
    folder
}

impl Browser {
    fn start(program: &Path) -> Browser {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let process = Command::new(program)
            .args(["--headless=new", "--disable-gpu", "--no-sandbox", "--no-first-run", "--hide-scrollbars"])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-dev-shm-usage",
            ])
            .args(["--remote-debugging-port=0", "about:blank"])
            .arg(format!("--user-data-dir={}", folder.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser starts");
        // The browser writes its port and path there when it listens.
        let notice = folder.path().join("DevToolsActivePort");
        let begin = Instant::now();
        let (port, path) = loop {
            let text = std::fs::read_to_string(&notice).unwrap_or_default();
            if let Some((port, path)) = text.split_once('\n').filter(|(_, path)| !path.is_empty()) {
                break (port.parse::<u16>().expect("a port"), path.trim().to_owned());
            }
            assert!(begin.elapsed() < PATIENCE, "{} did not start to listen", program.display());
            std::thread::sleep(Duration::from_millis(50));
        };
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the browser listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let (socket, _) =
            tungstenite::client(format!("ws://127.0.0.1:{port}{path}"), stream).expect("a handshake");
        let (complaints, fetched) = (Vec::new(), Vec::new());
        let mut browser =
            Browser { process, socket, session: None, calls: 0, complaints, fetched, _folder: folder };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let target = target["targetId"].as_str().expect("an id").to_owned();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = Some(attached["sessionId"].as_str().expect("an id").to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// One command and its answer.
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let id = self.calls;
        let mut command = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        self.socket.send(Message::text(command.to_string())).expect("the browser takes commands");
        loop {
            let Message::Text(text) = self.socket.read().expect("the browser answers") else { continue };
            let mut message: Value = serde_json::from_str(&text).expect("JSON");
            if message["id"] == json!(id) {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(params["exceptionDetails"].to_string()),
            Some("Runtime.consoleAPICalled") if params["type"] == "error" => {
                self.complaints.push(params["args"].to_string());
            }
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.complaints.push(params["entry"].to_string());
            }
            Some("Network.requestWillBeSent") => {
                self.fetched.push(params["request"]["url"].as_str().unwrap_or_default().to_owned());
            }
            _ => {}
        }
    }

    /// Sets the size of the window and light or dark colours.
    pub(crate) fn resize(&mut self, width: u32, height: u32, dark: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Loads an address and waits until its first overview is drawn.
    pub(crate) fn open(&mut self, url: &str) {
        self.evaluate("window.before = true");
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert!(answer["errorText"].is_null(), "{url}: {}", answer["errorText"]);
        self.wait_for("window.before === undefined && document.documentElement?.dataset.state === 'ready'");
    }

    /// The value of a JavaScript expression.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].take()
    }

    /// The text of the elements that a selector finds, joined.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let found =
            format!("[...document.querySelectorAll({selector:?})].map((e) => e.innerText).join('\\n')");
        self.evaluate(&found).as_str().unwrap_or_default().to_owned()
    }

    /// How many elements a selector finds.
    pub(crate) fn count(&mut self, selector: &str) -> u64 {
        self.evaluate(&format!("document.querySelectorAll({selector:?}).length")).as_u64().expect("a number")
    }

    /// Waits until an expression is true.
    pub(crate) fn wait_for(&mut self, expression: &str) {
        let begin = Instant::now();
        while self.evaluate(expression) != json!(true) {
            if begin.elapsed() > PATIENCE {
                let text = self.text("body");
                panic!("`{expression}` did not become true; {:?}; the page says:\n{text}", self.complaints);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the page has drawn an overview that it fetched after this call.
    pub(crate) fn wait_for_update(&mut self) {
        let updates = self.evaluate("Number(document.documentElement.dataset.updates || 0)");
        let updates = updates.as_u64().expect("a number");
        // The one that is under way may have begun before.
        self.wait_for(&format!("Number(document.documentElement.dataset.updates || 0) >= {}", updates + 2));
    }

    /// That nothing is wider than the window.
    pub(crate) fn assert_no_overflow(&mut self, what: &str) {
        let sizes =
            self.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]");
        let wide = self.evaluate(
            "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
             .filter((e) => !e.closest('.hidden, .skip')).map((e) => e.tagName + '#' + e.id + '.' + e.className).slice(0, 5)",
        );
        assert!(sizes[0].as_u64() <= sizes[1].as_u64(), "{what} is wider than its window: {sizes} {wide}");
        assert_eq!(wide, json!([]), "{what} has elements beyond its window");
    }

    /// Leaves a picture of the whole page in [`screenshots`].
    pub(crate) fn screenshot(&mut self, name: &str) {
        let answer =
            self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }));
        let picture = base64::engine::general_purpose::STANDARD
            .decode(answer["data"].as_str().expect("data"))
            .expect("base64");
        assert!(picture.len() > 10_000, "{name} is nearly empty: {} bytes", picture.len());
        std::fs::write(screenshots().join(name), picture).expect("the folder is writable");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

//! The delivery contract against a server that somebody else runs: `cargo xtask certify jsonlog://HOST:PORT`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use postroad_conformance::{Environment, Failure, Harness, run_all};
use postroad_core::{Backend, BoxFuture, Capabilities};
use postroad_jsonlog::backend::JsonLog;
use postroad_jsonlog::client::ClientOptions;

/// A server at a URL; every case has subjects of its own there.
struct External {
    url: String,
    capabilities: Capabilities,
    run: String,
    cases: AtomicU64,
}

struct Case {
    url: String,
    prefix: String,
}

async fn connect(url: &str) -> Result<Arc<dyn Backend>, Failure> {
    Ok(Arc::new(JsonLog::connect(url, ClientOptions::default()).await?))
}

impl Harness for External {
    fn name(&self) -> &'static str {
        "jsonlog-external"
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn start(&self, _: &str) -> BoxFuture<'_, Result<Box<dyn Environment>, Failure>> {
        let number = self.cases.fetch_add(1, Ordering::Relaxed);
        let case = Case { url: self.url.clone(), prefix: format!("certify/{}/{number}", self.run) };
        Box::pin(std::future::ready(Ok(Box::new(case) as Box<dyn Environment>)))
    }
}

impl Environment for Case {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        Box::pin(connect(&self.url))
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }
}

#[test]
#[ignore = "needs a server: `cargo xtask certify URL` and `cargo xtask test-all --docker` run it"]
fn the_server_at_the_url_keeps_the_contract() {
    let url = std::env::var("POSTROAD_CERTIFY_URL").expect("POSTROAD_CERTIFY_URL names the server");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let capabilities = runtime.block_on(async { connect(&url).await.unwrap().capabilities().clone() });
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let run = since.as_millis().to_string();
    let report = run_all(&External { url, capabilities, run, cases: AtomicU64::new(0) });
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("certificates");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("jsonlog-external.json"), report.to_json()).unwrap();
    std::fs::write(directory.join("jsonlog-external.xml"), report.to_junit()).unwrap();
    println!("{}\n{}", report.markdown_head(), report.to_markdown_row());
    println!("JSON and JUnit: {}", directory.display());
    let failures: Vec<_> = report.failures().collect();
    assert!(report.is_passed(), "{failures:#?}");
}

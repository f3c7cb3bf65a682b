//! The project's own commands. `cargo xtask help` lists them.

mod args;
mod bench;
mod ci;
mod deb;
mod properties;
mod server;
mod sh;
mod test_all;
mod tidy;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  test-all [--allow-missing] [--quick]
        Everything that must hold: format, lints, tidy, all tests, property tests with more
        cases, a short run of the bench against its peers. What could not run is listed and
        fails the command, unless --allow-missing. --quick leaves out the last two.
  tidy  The laws that a compiler does not check: who may depend on whom, folder names, lints,
        versions, links in the docs, no paths of somebody's machine.
  ci [--allow-missing]
        What a pull request must pass: test-all, then the API docs without a warning, then
        cargo-deny where it is installed.
  bench jsonlog [--quick] [--only LIST] [--servers LIST] [--seconds N] [--rounds N]
                [--binary FILE] [--json FILE] [--svg FILE] [--check]
        The JSON-log door against Redis Streams and beanstalkd, all of them durable before they
        answer. --only: one or more of publish,deliver,scale,recovery,memory. --servers: one or
        more of postroad,redis,beanstalkd. --check fails when a goal is missed. --quick is a
        short run without goals. Writes target/bench/jsonlog.json and .svg.
  peers Fetches the peers of the bench and the tools of the tests into target/peers and says where
        they are. Installs nothing.
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_else(|| "help".into());
    let rest: Vec<String> = words.collect();
    let done = match verb.as_str() {
        "tidy" => tidy::run(&rest),
        "test-all" => test_all::run(&rest),
        "ci" => ci::run(&rest),
        "bench" => bench::run(&rest),
        "peers" => deb::run(&rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(anyhow::anyhow!("no command `{other}`\n\n{HELP}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {verb}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

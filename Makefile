# The task runner. CI runs the same.
.PHONY: build fmt lint test doc deny bench
build:
	cargo build --release --workspace
fmt:
	cargo fmt --all
lint:
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
test:
	./tests/run
doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps
deny:
	cargo deny check
bench:
	cargo bench --workspace

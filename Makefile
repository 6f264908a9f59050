# Everything goes into .venv; what is there already is not done again.
#   make demo    camera, extractor and consumer as three processes over DDS; in one without ROS on ARM
#   make test    lint and every test; make test ROS=jazzy the tests of the nodes on Jazzy, in .venv-jazzy
#   make test-oldest  the library's tests with the oldest numpy, OpenCV and runtimes that pyproject.toml allows
#   make test-arm64   the library on emulated 64-bit ARM cores, the C++ header there and on a big-endian one; as root, takes 100 minutes
#   make bench   time the models beside ORB and SIFT; build/bench.svg; BENCH="--models all" and so on
#   make soak    the node under two restless cameras and a flood for ten minutes; make soak SOAK=3600 for an hour
#   make docs    the documentation as a site in build/site; fails on a dead link
#   make lint    formatting, lint, the layers of the imports and types
#   make clean   remove the environments and every build folder

PYTHON ?= python3
SOAK ?= 600
OLDEST_PYTHON ?= python3.10
# Kilted takes every target and test; on Jazzy the tests of the nodes run, too.
ROS ?= kilted
MACHINE := $(shell uname -m)
ifeq ($(ROS),kilted)
VENV := .venv
DEMO_PACKAGES := requirements/demo.txt $(if $(filter x86_64,$(MACHINE)),requirements/ros.txt)
TEST_PACKAGES := requirements/test.txt
else ifeq ($(ROS),jazzy)
VENV := .venv-jazzy
DEMO_PACKAGES := requirements/ros-jazzy.txt
TEST_PACKAGES := requirements/ros-jazzy.txt
else
$(error ROS=$(ROS): expected kilted or jazzy)
endif
BIN := $(VENV)/bin
# What needs ROS as a whole, with the messages and the demo. Left out: the soak, the fuzzing and the measurement, which ask about
# our code or this machine, and single tests among those of the library.
NODE_TESTS = test/test_demo.py test/test_messages.py $(filter-out test/test_soak.py test/test_fuzz.py test/test_node_cost.py,\
	$(shell grep -lE "^[a-z].*importorskip.'rclpy'" test/test_*.py))
# Shows what is collected and downloaded, not the hundred packages that are there already.
PIP_INSTALL = $(BIN)/python -m pip --disable-pip-version-check install $(addprefix -r ,$(1)) | sed -u '/already satisfied/d'

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

# A ROS 2 that the shell has sourced must not mix with the one in .venv.
unexport PYTHONPATH LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH RMW_IMPLEMENTATION ROS_DISTRO

.PHONY: demo test test-oldest test-arm64 bench soak docs lint clean
.DELETE_ON_ERROR:

ifeq ($(MACHINE),x86_64)
demo: $(VENV)/package.stamp
	$(BIN)/python -m edgepoint2_ros.cli demo $(DEMO)
else
demo: $(VENV)/demo.stamp
	@echo 'ROS 2 has no wheels for $(MACHINE), so the demo runs without it, in one process.'
	$(BIN)/python -m edgepoint2_ros.cli demo --no-ros $(DEMO)
endif

ifeq ($(ROS),kilted)
# Tests that wait for nodes leave a core idle: three at a time keep two cores busy. Threads of torch that wait for each
# other there take several times the CPU.
test: $(VENV)/test.stamp $(VENV)/package.stamp lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile
else
test: $(VENV)/test.stamp $(VENV)/package.stamp
	ROS_DISTRO=$(ROS) $(BIN)/python -m pytest --numprocesses 3 --dist loadfile $(NODE_TESTS)
endif

test-oldest: .venv-oldest/test.stamp
	.venv-oldest/bin/python -m pytest -m 'not slow'

test-arm64: $(VENV)/test.stamp $(VENV)/package.stamp
	tools/test_arm64 $(ARM64)

bench: $(VENV)/test.stamp $(VENV)/package.stamp
	@rm -f build/bench.svg build/bench.png  # bench writes over nothing
	$(BIN)/python -m edgepoint2_ros.cli bench --plot build/bench.svg --plot build/bench.png $(BENCH)

soak: $(VENV)/test.stamp $(VENV)/package.stamp
	SOAK_SECONDS=$(SOAK) $(BIN)/python -m pytest -rP test/test_soak.py

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'build/site/index.html'

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-jazzy .venv-oldest build install log

$(VENV)/python.stamp:
	@for tool in $(if $(filter x86_64,$(MACHINE)),cmake c++) $(PYTHON); do command -v $$tool > /dev/null || { \
		echo "$$tool is missing; on Debian or Ubuntu: sudo apt install cmake g++ python3-dev python3-venv"; exit 1; }; done
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14) and f"Python 3.10 to 3.13 is needed, \
	$(PYTHON) is {sys.version.split()[0]}; choose another by make PYTHON=python3.12")'
	@echo '== [1/3] Python environment in $(VENV)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo.stamp: $(VENV)/python.stamp $(DEMO_PACKAGES) requirements/runtime.txt
	@echo '== [2/3] packages, ROS 2 among them: a minute or two'
	@$(call PIP_INSTALL,$(DEMO_PACKAGES))
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp $(TEST_PACKAGES) requirements/models.txt requirements/tools.txt
	@echo '== packages for the tests'
	@$(call PIP_INSTALL,$(TEST_PACKAGES))
	@touch $@

.venv-oldest/test.stamp: BIN := .venv-oldest/bin
.venv-oldest/test.stamp: requirements/oldest.txt
	@$(OLDEST_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10) and f"Python 3.10 is needed, \
	$(OLDEST_PYTHON) is {sys.version.split()[0]}; name it by make test-oldest OLDEST_PYTHON=...")'
	$(OLDEST_PYTHON) -m venv .venv-oldest
	@$(call PIP_INSTALL,$<)
	@touch $@

$(VENV)/docs.stamp: $(VENV)/python.stamp requirements/docs.txt
	@echo '== packages for the documentation'
	@$(call PIP_INSTALL,requirements/docs.txt)
	@touch $@

# Files are linked, not copied: one that is new or gone needs a rebuild, an edited one does not.
$(VENV)/files.txt: $(VENV)/demo.stamp FORCE
	@find edgepoint2_ros launch config rtabmap -type f -not -name '*.pyc' | sort > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

FORCE:

$(VENV)/package.stamp: $(VENV)/demo.stamp $(VENV)/files.txt CMakeLists.txt package.xml $(wildcard cmake/*.cmake msg/*.msg include/*/*.hpp) resource/executable.py.in
	@echo '== [3/3] messages: about 15 seconds; output in $(VENV)/build.log'
	@mkdir -p $(VENV)/build && cd $(VENV)/build && { \
	cmake '$(CURDIR)' -DCMAKE_PREFIX_PATH='$(CURDIR)/$(VENV)' -DCMAKE_INSTALL_PREFIX='$(CURDIR)/$(VENV)' \
		-DPython3_EXECUTABLE='$(CURDIR)/$(BIN)/python3' -DAMENT_CMAKE_SYMLINK_INSTALL=ON -DBUILD_TESTING=OFF && \
	cmake --build . --parallel "$$(nproc)" && cmake --install .; } > ../build.log 2>&1 || \
	{ tail -n 40 ../build.log; exit 1; }
	@touch $@

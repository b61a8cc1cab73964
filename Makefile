# Every target is one line of dev.py, which works the same without make (python dev.py run).
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)

.NOTPARALLEL:
.PHONY: run test test-slow test-docker test-browser test-tensorflow check bench docs lock clean

run:    ; @$(PYTHON) dev.py run $(ARGS)
test:   ; @$(PYTHON) dev.py test $(ARGS)
check:  ; @$(PYTHON) dev.py check
test-slow: ; @$(PYTHON) dev.py test-slow $(ARGS)
test-docker: ; @$(PYTHON) dev.py test-docker $(ARGS)
test-browser: ; @$(PYTHON) dev.py test-browser $(ARGS)
test-tensorflow: ; @$(PYTHON) dev.py test-tensorflow $(ARGS)
bench:  ; @$(PYTHON) dev.py bench $(NAME) $(ARGS)
docs:   ; @$(PYTHON) dev.py docs
lock:   ; @$(PYTHON) dev.py lock
clean:  ; @$(PYTHON) dev.py clean

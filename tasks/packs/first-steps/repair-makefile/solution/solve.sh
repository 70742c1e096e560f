#!/bin/bash
set -eu
cat > /app/Makefile <<'MAKE'
PREFIX = /usr/local
DESTDIR =
CFLAGS = -O2 -Wall
CPPFLAGS = -Iinclude -Ibuild
LDLIBS = -lm
OBJECTS = build/main.o build/stats.o build/geometric.o

build/stats: $(OBJECTS)
	$(CC) $(CFLAGS) -o $@ $(OBJECTS) $(LDLIBS)

build/main.o: main.c include/stats.h build/version.h | build
	$(CC) $(CFLAGS) $(CPPFLAGS) -c -o $@ $<

build/%.o: lib/%.c include/stats.h | build
	$(CC) $(CFLAGS) $(CPPFLAGS) -c -o $@ $<

build/version.h: VERSION | build
	echo "#define VERSION \"$$(cat VERSION)\"" > $@

build:
	mkdir -p build

check: build/stats
	sh check/check.sh build/stats

install: build/stats
	mkdir -p $(DESTDIR)$(PREFIX)/bin
	install -m 755 build/stats $(DESTDIR)$(PREFIX)/bin/stats

clean:
	rm -rf build

.PHONY: check install clean
MAKE
cd /app
make
make check

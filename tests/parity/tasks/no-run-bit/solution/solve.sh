# As the tests.
#!/bin/bash
nproc > count.txt

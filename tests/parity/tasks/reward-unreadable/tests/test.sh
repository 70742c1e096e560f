#!/bin/bash
case $(head -c 1 mark.txt) in
"{") cp mark.txt /logs/verifier/reward.json ;;
"") echo "no mark" > /logs/verifier/reward.txt ;;
*) cp mark.txt /logs/verifier/reward.txt ;;
esac

"""Speech front ends: wave -> one vector every 20 ms."""
